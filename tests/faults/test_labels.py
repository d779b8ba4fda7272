"""A store of labels that is damaged, of other settings, or killed while it is written."""

import json
import os
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from limbeck.engine.labels import Labels, Said, top_k, write_labels
from limbeck.errors import BadFile, BadSetting
from limbeck.rng import Rng
from tests.faults.processes import FORKS, Strike, halve

SHARDS = 3
SETTINGS = {"classes": 5, "k": 2, "teacher": "abc"}


def shard(i: int) -> Said:
    p = (3 * Rng(("shard", i)).normal(4, 5)).softmax(1)
    return Said(torch.arange(4), {"seed": Rng(i).integers(4, 99)}, top_k(p, 2))


def write(folder: Path) -> None:
    write_labels(folder, SETTINGS, SHARDS, shard)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "store")
    return tmp_path / "store"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_missing_shard(folder: Path) -> None:
    (folder / "00001.safetensors").unlink()
    with pytest.raises(BadFile, match=r"00001.safetensors is missing from its store of labels"):
        Labels(folder)


@pytest.mark.parametrize("harm", ["cut", "flipped", "swapped"])
def test_a_damaged_shard(folder: Path, harm: str) -> None:
    path, other = folder / "00001.safetensors", folder / "00002.safetensors"
    if harm == "cut":
        halve(path)
    elif harm == "flipped":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))
    else:
        path.write_bytes(other.read_bytes())
    with pytest.raises(BadFile, match=r"00001.safetensors is damaged: it has another checksum than its index says\."):
        Labels(folder)


@pytest.mark.parametrize("harm", ["missing", "shard", "index"])
def test_what_is_missing_or_damaged_is_made_again_and_nothing_else(folder: Path, harm: str) -> None:
    before, made = contents(folder), list[int]()
    if harm == "missing":
        (folder / "00001.safetensors").unlink()
    elif harm == "shard":
        halve(folder / "00001.safetensors")
    else:
        index = json.loads((folder / "index.json").read_text())
        del index["shards"]["00001.safetensors"]
        (folder / "index.json").write_text(json.dumps(index))

    def make(i: int) -> Said:
        made.append(i)
        return shard(i)

    write_labels(folder, SETTINGS, SHARDS, make)
    assert contents(folder) == before and made == [1]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"settings": {}, "of": 1, "shards": {}}', '{"settings": 1}'])
def test_a_damaged_index(folder: Path, text: str) -> None:
    (folder / "index.json").write_text(text)
    for use in (Labels, write):
        with pytest.raises(BadFile, match=r"index\.json is not an index of labels: "):
            use(folder)


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"holds no labels: it has no index\.json\."):
        Labels(tmp_path)


def test_other_settings(folder: Path) -> None:
    with pytest.raises(BadFile, match=r"holds labels with classes 5, not 10\."):
        Labels(folder, classes=10)
    with pytest.raises(BadFile, match=r"holds labels with teacher 'abc', not 'def'\."):
        write_labels(folder, {**SETTINGS, "teacher": "def"}, SHARDS, shard)
    with pytest.raises(BadFile, match=r"holds labels with k 2, not None\."):
        write_labels(folder, {"classes": 5, "teacher": "abc"}, SHARDS, shard)
    with pytest.raises(BadFile, match=r"holds labels in 3 shards, not in 4\."):
        write_labels(folder, SETTINGS, 4, shard)


def test_classes_are_those_of_the_labels(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"labels need settings with classes=5, got 7\."):
        write_labels(tmp_path, {"classes": 7}, 1, shard)


def test_an_unfinished_store(tmp_path: Path) -> None:
    def make(i: int) -> Said:
        if i == 2:
            raise KeyboardInterrupt
        return shard(i)

    with pytest.raises(KeyboardInterrupt):
        write_labels(tmp_path, SETTINGS, SHARDS, make)
    with pytest.raises(BadFile, match=r"holds 2 of 3 shards; write_labels goes on\."):
        Labels(tmp_path)


def _strike(strike: Strike, folder: Path) -> None:
    strike.arm()
    write(folder)
    os._exit(0)


SAVED = "limbeck.engine.labels.save_file"
STRIKES = [
    *(Strike("os.replace", n, when) for n in range(1, 7) for when in ("before", "after")),
    *(Strike(SAVED, n, "amid") for n in (1, 2, 3)),
    *(Strike("os.fsync", n, "before") for n in (1, 2, 3, 4)),
]


@pytest.mark.xdist_group("faults-processes")
@pytest.mark.parametrize("strike", STRIKES, ids=str)
def test_killed_and_gone_on_with(folder: Path, tmp_path: Path, strike: Strike) -> None:
    """Nothing half-written reads as good, and the store ends with the same bits."""
    process: BaseProcess = FORKS.Process(target=_strike, args=(strike, tmp_path / "cut"))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    if str(strike) != "replace 6 after":  # when all was done
        with pytest.raises(BadFile, match=r"holds (no labels|\d of 3 shards)"):
            Labels(tmp_path / "cut")
    write(tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(folder)
