"""Several processes are one run: they end like one, leave one folder, and go on in other numbers."""

import json
import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.engine.checkpoint import flatten, read_state
from tests.faults.processes import HERE, Ended, Process, Strike, bits, copied, nothing

pytestmark = pytest.mark.xdist_group("faults-processes")

SHARED = str(HERE / "shared.py")
ARGS = ("distill", SHARED, "--on", SHARED, "--out", "../run", "--checkpoint-every", "10")


def join(port: int, rank: int, world: int, then: Callable[[], None]) -> None:
    """What ``torchrun`` tells a process."""
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world}
    os.environ.update({name: str(value) for name, value in told.items()})
    then()


def start(folder: Path, world: int, *args: str, prepare: tuple[Callable[[], None], ...] = ()) -> list[Process]:
    """So many processes that run one command; process k does the k-th preparation."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    prepare += (nothing,) * (world - len(prepare))
    return [Process(folder / f"{k}", *args, prepare=partial(join, port, k, world, prepare[k])) for k in range(world)]


def limbeck(folder: Path, world: int, *args: str, prepare: tuple[Callable[[], None], ...] = ()) -> list[Ended]:
    """Runs them to their end."""
    return [process.end() for process in start(folder, world, *args, prepare=prepare)]


def state(run: Path) -> dict[str, Any]:
    """Weights of the result, and losses and norms of every tick."""
    weights, _ = flatten(read_state(run / "stages" / "learn"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    numbers = torch.tensor([[*line["losses"].values(), *line["norms"].values()] for line in lines], dtype=torch.float64)
    return {**weights, "metrics": numbers}


def near(run: Path, other: Path, tolerance: float = 1e-10) -> None:
    """The same run but for rounding."""
    mine, theirs = state(run), state(other)
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    (ended,) = limbeck(folder, 1, *ARGS)
    assert ended.code == 0, ended.text
    return folder / "run"


@pytest.fixture(scope="module", params=[(), ("--shard", "true")], ids=["whole", "sharded"])
def how(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Whether each process holds all of every network, or a part."""
    return request.param


@pytest.fixture(scope="module")
def pair(how: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two."""
    folder = tmp_path_factory.mktemp("pair")
    first, second = limbeck(folder, 2, *ARGS, *how)
    assert (first.code, second.code) == (0, 0), first.text + second.text
    assert "run: " in first.text and second.text == ""
    return folder / "run"


@pytest.fixture(scope="module")
def broken(how: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two left of which the first was killed while it wrote its second checkpoint."""
    folder = tmp_path_factory.mktemp("broken")
    kill = Strike("limbeck.engine.checkpoint.save_file", 2, "amid").arm
    first, second = limbeck(folder, 2, *ARGS, *how, prepare=(kill,))
    assert (first.code, second.code) == (-signal.SIGKILL, 1)
    assert second.text.count("\n") == 1 and "another process" in second.text
    return folder / "run"


def test_two_end_like_one(alone: Path, pair: Path) -> None:
    near(pair, alone)
    assert len(state(pair)["metrics"]) == 30


def test_two_leave_one_folder(alone: Path, pair: Path) -> None:
    assert {path.name for path in pair.iterdir()} == {path.name for path in alone.iterdir()}
    assert ">finished</span>" in (pair / "report.html").read_text()


def test_two_go_on_to_the_same_bits(pair: Path, broken: Path, tmp_path: Path) -> None:
    copied(broken, tmp_path)
    assert [ended.code for ended in limbeck(tmp_path, 2, *ARGS, "--resume")] == [0, 0]
    assert bits(tmp_path / "run") == bits(pair)


@pytest.mark.parametrize("world", [1, 3])
def test_others_go_on_where_two_stopped(alone: Path, broken: Path, tmp_path: Path, world: int) -> None:
    copied(broken, tmp_path)
    assert [ended.code for ended in limbeck(tmp_path, world, *ARGS, "--resume")] == [0] * world
    near(tmp_path / "run", alone)


def test_a_signal_to_one_stops_all(alone: Path, tmp_path: Path) -> None:
    first, second = start(tmp_path, 2, *ARGS, "--steps", "100000")
    ended = second.signal(signal.SIGTERM, once=lambda: len([*(tmp_path / "run" / "checkpoint").glob("*")]) > 1)
    assert [first.end().code, ended.code] == [130, 130]
    assert "--resume" in first.end().text and ended.text == ""


def test_bad_input_is_said_once(tmp_path: Path) -> None:
    first, second = limbeck(tmp_path, 2, *ARGS, "--steps", "0")
    assert (first.code, second.code) == (2, 2)
    assert "steps" in first.text and second.text == ""
    assert not (tmp_path / "run").exists()
