"""Damaged files are recognised, a full disk leaves what was there whole, and no pickle is ever loaded."""

import pickle
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

import limbeck as package
from limbeck.engine.checkpoint import checksum, is_whole, seal
from tests.faults.processes import (
    QUICK,
    STAGES,
    Strike,
    bits,
    copied,
    full_disk,
    full_disk_for_users,
    halve,
    limbeck,
    no_pickle,
)

pytestmark = pytest.mark.xdist_group("faults-processes")

RUN = ("distill", QUICK, "--on", QUICK, "--checkpoint-every", "10", "--track", "none", "--out", "run")
NEWEST, BEFORE = "00-00000030", "00-00000020"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    assert limbeck(folder, *RUN).code == 0
    return folder / "run"


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed after its last checkpoint."""
    folder = tmp_path_factory.mktemp("begun")
    limbeck(folder, *RUN, prepare=Strike("os.replace", 6, "before").arm)
    assert sorted(path.name for path in (folder / "run" / "checkpoint").iterdir()) == [BEFORE, NEWEST]
    return folder / "run"


def flip(path: Path) -> None:
    """Changes one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGE: list[tuple[str, Callable[[Path], object]]] = [
    ("state.safetensors", flip),
    ("state.safetensors", halve),
    ("state.safetensors", empty),
    ("state.safetensors", Path.unlink),
    ("state.json", flip),
    ("state.json", Path.unlink),
    ("checksums.json", flip),
    ("checksums.json", halve),
    ("checksums.json", Path.unlink),
]


@pytest.mark.parametrize(("file", "harm"), DAMAGE, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_damaged_checkpoint(
    begun: Path, whole: Path, tmp_path: Path, file: str, harm: Callable[[Path], object]
) -> None:
    """The one before it is used, and said to be."""
    harm(copied(begun, tmp_path) / "checkpoint" / NEWEST / file)
    ended = limbeck(tmp_path, *RUN, "--resume")
    assert ended.code == 0
    assert f"checkpoint {NEWEST} is damaged; the one before it is used, if there is one.\n" in ended.text
    assert "resuming at stage learn, tick 20.\n" in ended.text
    assert bits(tmp_path / "run") == bits(whole)


def test_all_checkpoints_damaged(begun: Path, whole: Path, tmp_path: Path) -> None:
    run = copied(begun, tmp_path)
    flip(run / "checkpoint" / NEWEST / "state.safetensors")
    halve(run / "checkpoint" / BEFORE / "state.safetensors")
    ended = limbeck(tmp_path, *RUN, "--resume")
    assert ended.code == 0
    assert f"checkpoint {NEWEST} is damaged" in ended.text and f"checkpoint {BEFORE} is damaged" in ended.text
    assert "there is no whole checkpoint; starting from the beginning.\n" in ended.text
    assert bits(run) == bits(whole)


def test_half_a_line_of_metrics(begun: Path, whole: Path, tmp_path: Path) -> None:
    run = copied(begun, tmp_path)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "learn", "i": 31, "losses"')
    assert limbeck(tmp_path, *RUN, "--resume").code == 0
    assert bits(run) == bits(whole)


def test_damaged_result(whole: Path, tmp_path: Path) -> None:
    """A finished stage whose result is damaged is not taken for finished; it is made again from its checkpoint."""
    run = copied(whole, tmp_path)
    flip(run / "stages" / "learn" / "state.safetensors")
    ended = limbeck(tmp_path, *RUN, "--resume")
    assert ended.code == 0 and "the result of stage learn is damaged; it is made again.\n" in ended.text
    assert "resuming at stage learn, tick 30.\n" in ended.text
    assert bits(run) == bits(whole)


def test_damaged_result_of_an_early_stage(tmp_path: Path) -> None:
    """Files of a `Make` in a folder of their own have checksums too."""
    args = ("distill", STAGES, "--on", QUICK, "--checkpoint-every", "0", "--out", "run")
    assert limbeck(tmp_path, *args).code == 0
    expected = bits(tmp_path / "run")
    flip(tmp_path / "run" / "stages" / "views" / "cache" / "views.safetensors")
    ended = limbeck(tmp_path, *args, "--resume")
    assert ended.code == 0 and "the result of stage views is damaged; it is made again.\n" in ended.text
    assert bits(tmp_path / "run") == expected


def test_a_state_of_other_parts(begun: Path, tmp_path: Path) -> None:
    """A checkpoint that is whole but was made with another network is refused, not loaded in part."""
    run = copied(begun, tmp_path)
    other = tmp_path / "quick.py"
    other.write_text(Path(QUICK).read_text().replace("Linear(2, 8)", "Linear(2, 9)").replace("8", "9"))
    record = run / "recipe.json"
    record.write_text(record.read_text().replace(QUICK, str(other)))
    ended = limbeck(tmp_path, "distill", str(record), "--out", "run", "--resume")
    assert (ended.code, ended.text) == (
        2,
        "limbeck: run holds a state of other parts than its recipe and problem make.\n",
    )


class Bomb:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("sealed", [False, True])
def test_pickle_in_disguise(begun: Path, tmp_path: Path, sealed: bool) -> None:
    """With the checksums of the real file it is passed over as damaged; with its own it is refused."""
    state = copied(begun, tmp_path) / "checkpoint" / NEWEST / "state.safetensors"
    state.write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    if sealed:
        seal(state.parent)
    ended = limbeck(tmp_path, *RUN, "--resume")
    assert not (tmp_path / "boom").exists()
    if sealed:
        assert ended.code == 2 and ended.text.count("\n") == 1
        assert ended.text.startswith(f"limbeck: run/checkpoint/{NEWEST} holds no state that can be read: ")
    else:
        assert ended.code == 0 and f"checkpoint {NEWEST} is damaged" in ended.text


def test_no_pickle_is_needed(whole: Path, begun: Path, tmp_path: Path) -> None:
    """With every way to load one disabled, a run works from start to end."""
    shutil.copytree(begun, tmp_path / "begun")
    commands = (
        (*RUN,),
        ("distill", "begun/recipe.json", "--out", "begun", "--resume"),
        ("evaluate", "run", "--json"),
        ("export", "run", "--out", "exported"),
    )
    for args in commands:
        ended = limbeck(tmp_path, *args, prepare=no_pickle)
        assert ended.code == 0, ended.text
    assert bits(tmp_path / "run") == bits(tmp_path / "begun") == bits(whole)


def test_nothing_in_the_package_unpickles() -> None:
    """``weights_only=True`` would be the one exception."""
    loads = re.compile(r"\b(import pickle|from pickle|torch\.load|(np|numpy)\.load\b|joblib|dill|shelve|marshal)")
    files = sorted(Path(package.__file__).parent.rglob("*.py"))
    lines = [(path.name, line) for path in files for line in path.read_text().splitlines() if loads.search(line)]
    assert len(files) > 30 and [(name, line) for name, line in lines if "weights_only=True" not in line] == []


def test_full_disk_without_a_mount(whole: Path, tmp_path: Path) -> None:
    ended = limbeck(tmp_path, *RUN, prepare=partial(full_disk, 3))
    assert ended.code == 1
    assert (
        ended.text.splitlines()[-1] == f"limbeck: run/checkpoint/{NEWEST} cannot be written: No space left on device."
    )
    check_after_full_disk(tmp_path / "run", whole)


def check_after_full_disk(run: Path, whole: Path) -> None:
    """The checkpoint before is whole, nothing is left half-written, and the run goes on to the same bits."""
    assert is_whole(max((run / "checkpoint").iterdir()))
    assert not [path for path in run.rglob("*") if path.name.endswith(".partial")]
    ended = limbeck(run.parent, *RUN, "--resume")
    assert ended.code == 0 and "resuming at stage learn, tick " in ended.text
    assert bits(run) == bits(whole)


def resumed_when_full(run: Path, left: int) -> str:
    """What a run says last, when it goes on with so many kilobytes left."""
    filler = run.parent / "filler"
    filler.write_bytes(b"x" * (shutil.disk_usage(run).free - 1024 * left))
    ended = limbeck(run.parents[1], *RUN[:-1], str(run), "--resume")
    filler.unlink()
    assert ended.code == 1 and "Traceback" not in ended.text
    return ended.text.splitlines()[-1]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte, where mounting one is allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if made.returncode:
        pytest.skip("mounting a disk is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("left", [0, 4, 8])
def test_full_disk(begun: Path, whole: Path, tmp_path: Path, small_disk: Path, left: int) -> None:
    """However many kilobytes are left, from none to part of a checkpoint."""
    run = copied(begun, small_disk)
    for name in (run / "checkpoint" / NEWEST, run / "stages"):
        shutil.rmtree(name)
    before = {path.name: checksum(path) for path in (run / "checkpoint" / BEFORE).iterdir()}
    said = resumed_when_full(run, left)
    assert re.match(r"limbeck: \S+ cannot be written: .*No space left on device.*\.$", said)
    assert {path.name: checksum(path) for path in (run / "checkpoint" / BEFORE).iterdir()} == before
    check_after_full_disk(run, whole)


def test_full_disk_for_metrics(begun: Path, small_disk: Path) -> None:
    """They are the first that does not fit, and fail again when they are closed."""
    run = copied(begun, small_disk)
    shutil.rmtree(run / "checkpoint" / NEWEST)
    first, *rest = (run / "metrics.jsonl").read_text().splitlines(keepends=True)[:20]
    padding = " " * (4096 - len(first + "".join(rest)))  # the disk's unit
    (run / "metrics.jsonl").write_text(first[:-1] + padding + "\n" + "".join(rest))
    said = resumed_when_full(run, 0)
    assert said == f"limbeck: {run}/metrics.jsonl cannot be written: No space left on device."
    assert limbeck(small_disk, *RUN, "--resume").code == 0


def test_full_disk_for_what_a_stage_makes(tmp_path: Path) -> None:
    """It says where, leaves nothing behind, and goes on when there is room."""
    args = ("distill", STAGES, "--on", QUICK, "--out", "run")
    ended = limbeck(tmp_path, *args, prepare=full_disk_for_users)
    assert (ended.code, ended.text) == (
        1,
        "limbeck: stage views failed with OSError: [Errno 28] No space left on device.\n",
    )
    assert [path.name for path in (tmp_path / "run" / "stages").iterdir()] == []
    assert limbeck(tmp_path, *args, "--resume").code == 0
