"""Networks in shards learn what they learn in one piece."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.suite.sharded import JOBS, REFUSED, RUNS, WORLD, classified, numbers
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
    """The largest difference: of each loss and norm by itself, of weights against the largest of their tensor."""
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        size = value.abs() if name.startswith("step ") else value.abs().max()
        away = ((mine[name] - value).abs() / size.clamp_min(1e-30)).max()
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


@pytest.mark.parametrize(("name", "accumulate"), JOBS)
def test_the_result_in_one_piece_is_the_students(folder: Path, name: str, accumulate: int) -> None:
    """Or its average's, which these runs have."""
    pieces, made = (load_file(folder / f"0-{name}-{accumulate}{end}") for end in ("", "-whole"))
    average = {key.partition(" ")[2].partition(" ")[2]: x for key, x in pieces.items() if key.startswith("student~")}
    assert all(torch.equal(made[key], value) for key, value in average.items())
    assert len(average) > 5


@pytest.mark.parametrize("name", [name for name, _ in JOBS])
def test_each_process_holds_a_part_of_everything(folder: Path, name: str) -> None:
    """And none holds what another does, but for adapters."""
    shares = [json.loads((folder / f"{rank}.json").read_text())[name] for rank in range(WORLD)]
    twice = 0.45 if name == "adapters" else 0.0
    for kind in ("weights", "averages") if twice else shares[0]:
        both = sum(share[kind] for share in shares)
        assert 1 - 1e-9 <= both <= 1 + twice + 1e-9, (kind, both)
        assert max(share[kind] for share in shares) < 0.6 + twice / 3


def test_adapters_share_one_base_in_shards(folder: Path) -> None:
    """The very same parts in teacher, student and critic."""
    assert json.loads((folder / "0.json").read_text())["one base"]


@pytest.mark.parametrize("said", REFUSED)
def test_what_would_go_round_the_shards_is_refused(folder: Path, said: str) -> None:
    """By every process, in the same sentence."""
    for rank in range(WORLD):
        text = json.loads((folder / f"{rank}.json").read_text())[said]
        assert text.startswith("shard=True needs ") and said in text, text
