"""A tapped student in FSDP's shards learns what it learns in one piece."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.suite.sharded import WORLD, record
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


@pytest.mark.parametrize("accumulate", [1, 2])
def test_shards_learn_as_one_piece(folder: Path, accumulate: int) -> None:
    """Parameters, losses, and norms, by which updates are clipped here."""
    alone = record(shard=False, accumulate=WORLD * accumulate)
    for rank in range(WORLD):
        seen = load_file(folder / f"{rank}-{accumulate}.safetensors")
        assert seen.keys() == alone.keys()
        for name, value in alone.items():
            assert torch.allclose(seen[name], value, rtol=1e-6 if name == "steps" else 1e-10, atol=1e-12), name
