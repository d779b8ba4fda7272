"""Networks in shards learn what they learn in one piece."""

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.suite.sharded import JOBS, RUNS, WORLD, classified, numbers
from tests.suite.worker import ROOT

pytestmark = pytest.mark.xdist_group("suite-ranks")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each rank left what it ended with."""
    folder = tmp_path_factory.mktemp("sharded")
    command = [sys.executable, "-m", "tests.suite.sharded", str(folder)]
    started = [subprocess.Popen([*command, str(rank)], cwd=ROOT) for rank in range(WORLD)]
    assert [worker.wait(timeout=300) for worker in started] == [0] * WORLD
    return folder


def same(mine: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    """The largest difference, against the largest number, of each tensor."""
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        away = (mine[name] - value).abs().max() / value.abs().max().clamp_min(1e-30)
        assert away <= tolerance, (name, away.item())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_network_that_its_user_sharded_learns_as_one_piece(folder: Path, accumulate: int) -> None:
    alone = numbers(classified(steps=4, ema=None, accumulate=WORLD * accumulate))
    for rank in range(WORLD):
        same(load_file(folder / f"{rank}-own-{accumulate}"), alone, 1e-9)


@pytest.mark.parametrize(("name", "accumulate"), JOBS)
def test_shards_learn_as_one_process_does(folder: Path, name: str, accumulate: int) -> None:
    """Losses, norms by which updates are clipped, weights of every role and average, after 50 ticks or 10."""
    alone = numbers(RUNS[name]())
    for rank in range(WORLD):
        same(load_file(folder / f"{rank}-{name}-{accumulate}"), alone, 1e-8)
