"""Killed at any moment and resumed, a run ends with the same bits, and the same metrics."""

import random
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.faults.processes import HERE, QUICK, STAGES, Process, Strike, bits, limbeck, slow_disk, slow_make

pytestmark = pytest.mark.xdist_group("faults-processes")  # one server to fork from

# The recipe in one stage, and the one in three.
ONE = ("distill", QUICK, "--on", QUICK, "--out", "run", "--checkpoint-every", "10")
THREE = ("distill", STAGES, "--on", QUICK, "--out", "run", "--checkpoint-every", "10")
LONG = ("distill", STAGES, "--on", QUICK, "--out", "run", "--checkpoint-every", "20", "--steps", "100")
TINY = str(HERE.parent / "cli" / "tiny.py")
DRAWN = ("distill", TINY, "--on", TINY, "--out", "run", "--checkpoint-every", "4", "--steps", "20")
MOMENTS = 10


class Truth:
    """Runs that nobody interrupted: bits at the end, and how long the process took."""

    def __init__(self, folder: Path):
        self.folder, self.known = folder, {}  # type: ignore[var-annotated]

    def of(self, args: tuple[str, ...]) -> tuple[dict[str, bytes], float]:
        if args not in self.known:
            where, began = self.folder / str(len(self.known)), time.monotonic()
            ended = limbeck(where, *args)
            assert ended.code == 0, ended.text
            self.known[args] = bits(where / "run"), time.monotonic() - began
        return self.known[args]


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    limbeck(tmp_path_factory.mktemp("warm"), "systems")  # starts the server that processes are forked from
    return Truth(tmp_path_factory.mktemp("truth"))


def strikes() -> Iterator[tuple[tuple[str, ...], Strike]]:
    """Every rename, before and after; every state, when half of it is written; and what else touches the disk."""
    yield from ((ONE, Strike("os.replace", n, when)) for n in range(1, 9) for when in ("before", "after"))
    saved = "limbeck.engine.checkpoint.save_file"
    yield from ((ONE, Strike(saved, n, "amid")) for n in range(1, 5))
    yield from ((ONE, Strike("os.fsync", n, "before")) for n in (1, 2, 5, 20))
    yield from ((ONE, Strike("shutil.rmtree", n, "before")) for n in (1, 4, 6))
    yield from ((THREE, Strike("os.replace", n, when)) for n in (3, 6, 7, 9) for when in ("before", "after"))
    yield from ((THREE, Strike(saved, n, "amid")) for n in (1, 3, 4, 7))
    yield from ((DRAWN, Strike("os.replace", n, "before")) for n in (3, 6, 8))  # pictures


@pytest.mark.parametrize(
    ("args", "strike"), [*strikes()], ids=lambda x: str(x) if isinstance(x, Strike) else Path(x[1]).stem
)
def test_killed_where_it_hurts(truth: Truth, tmp_path: Path, args: tuple[str, ...], strike: Strike) -> None:
    assert limbeck(tmp_path, *args, prepare=strike.arm).code == -signal.SIGKILL
    assert limbeck(tmp_path, *args, "--resume").code == 0
    check(tmp_path / "run", truth.of(args)[0])


def check(run: Path, expected: dict[str, bytes]) -> None:
    """The same bits and pictures, nothing half-written left beside them, and a report of all of it."""
    assert bits(run) == expected and ">finished</span>" in (run / "report.html").read_text()
    assert not [path for path in run.rglob("*") if path.name.endswith(".partial")]


def test_resumed_with_other_checkpoints(truth: Truth, tmp_path: Path) -> None:
    """What was half written does not stay."""
    limbeck(tmp_path, *ONE, prepare=Strike("limbeck.engine.checkpoint.save_file", 2, "amid").arm)
    assert [*(tmp_path / "run" / "checkpoint").glob(".*.partial")]
    assert limbeck(tmp_path, *ONE, "--resume", "--checkpoint-every", "7").code == 0
    check(tmp_path / "run", truth.of(ONE)[0])


def test_killed_at_random_moments(truth: Truth, tmp_path: Path) -> None:
    """Ten kills of one run, which goes on after each: at once, or when it has said a few lines."""
    draw, resumed = random.Random(0), 0
    for _ in range(MOMENTS):
        enough = partial(told, tmp_path, draw.randrange(6))
        process = Process(tmp_path, *LONG, "--resume", prepare=slow_disk)
        ended = process.signal(signal.SIGKILL, enough, after=draw.uniform(0, 0.1))
        assert ended.code in (-signal.SIGKILL, 0)
        resumed += "resuming at stage" in ended.text
    assert limbeck(tmp_path, *LONG, "--resume").code == 0
    assert resumed >= MOMENTS // 3, "the kills came too early to show anything"
    check(tmp_path / "run", truth.of(LONG)[0])


def test_killed_once_at_each_of_ten_moments(truth: Truth, tmp_path: Path) -> None:
    """Ten runs, each killed once somewhere between its start and its end."""
    expected, seconds = truth.of(THREE)
    draw = random.Random(1)
    for k in range(MOMENTS):
        folder = tmp_path / str(k)
        Process(folder, *THREE).kill(seconds * (k + draw.random()) / MOMENTS)
        assert limbeck(folder, *THREE, "--resume").code == 0
        check(folder / "run", expected)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("every", ["20", "0"])
def test_stopped_by_a_signal(truth: Truth, tmp_path: Path, number: int, every: str) -> None:
    process = Process(tmp_path, *LONG, "--checkpoint-every", every)
    stopped = process.signal(number, lambda: said(tmp_path, "labels 30/"))
    assert stopped.code == 130 and stopped.text.endswith("interrupted; go on with --out run --resume\n")
    newest = max(path.name for path in (tmp_path / "run" / "checkpoint").glob("[0-9]*"))
    stage, tick = {"01": "labels", "02": "again"}[newest[:2]], int(newest[3:])
    resumed = limbeck(tmp_path, *LONG, "--resume")
    assert resumed.code == 0 and f"resuming at stage {stage}, tick {tick}.\n" in resumed.text
    check(tmp_path / "run", truth.of(LONG)[0])


def said(folder: Path, text: str) -> bool:
    """Whether the process in a folder has printed something."""
    return text in (folder / "log.txt").read_text()


def told(folder: Path, lines: int) -> bool:
    """Whether the process in a folder has told how far it is so often."""
    return (folder / "log.txt").read_text().count(" s left") >= lines


def test_stopped_while_something_is_made(truth: Truth, tmp_path: Path) -> None:
    """A `Make` is left at once, and made again."""
    made = tmp_path / "run" / "stages" / ".views.partial" / "cache" / "views.safetensors"
    ended = Process(tmp_path, *THREE, prepare=slow_make).signal(signal.SIGINT, made.exists)
    assert ended.code == 130 and "interrupted; go on with" in ended.text
    assert limbeck(tmp_path, *THREE, "--resume").code == 0
    check(tmp_path / "run", truth.of(THREE)[0])
