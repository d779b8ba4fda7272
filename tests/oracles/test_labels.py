"""Stored labels against what was stored: error bounds, bits of replayed views, and runs that see the same batches."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from limbeck import KD, Adam, CrossEntropy, Dataset, Incompatible, Rng, Source, distill
from limbeck.engine import Labels, Replayed, Said, TopK, reinforce_data, top_k, write_labels
from limbeck.engine.labels import UNIT, fingerprint
from limbeck.errors import BadSetting
from limbeck.problems.digits import Jitter, jitter, split
from tests.oracles.exact import F64, close, seeds


def probabilities(seed: int, n: int, classes: int, *, sharp: float = 3.0) -> Tensor:
    return (sharp * Rng(("labels", seed)).normal(n, classes, dtype=F64)).softmax(1)


# The likeliest classes in few bytes


@seeds
@pytest.mark.parametrize(("classes", "k"), [(2, 1), (10, 3), (10, 10), (300, 7), (70_000, 50)])
def test_kept_classes_are_off_by_less_than_a_unit_and_sum_to_one(seed: int, classes: int, k: int) -> None:
    p = probabilities(seed, 20, classes)
    kept, top = top_k(p, k), p.topk(k, 1)
    assert torch.equal(kept.index, top.indices)
    assert (kept.p - top.values).abs().max() < 1 / UNIT + 1e-7  # that of float32
    assert (kept.rest - (1 - top.values.sum(1))).abs().max() < 1 / UNIT + 1e-7
    assert bool((kept.units >= 0).all()) and bool((kept.units.sum(1) <= UNIT).all())
    if k == classes:
        assert bool((kept.units.sum(1) == UNIT).all())


@seeds
def test_dense_labels_spread_what_is_left_evenly(seed: int) -> None:
    p = probabilities(seed, 20, 10)
    kept = top_k(p, 4)
    dense = kept.dense()
    close(dense.double().sum(1), torch.ones(20, dtype=F64), 1e-6)
    for i in range(20):
        others = [c for c in range(10) if c not in kept.index[i]]
        close(dense[i, kept.index[i]], kept.p[i], 1e-7)
        close(dense[i, others], (kept.rest[i] / 6).expand(6), 1e-7)
    assert (dense - p).abs().max() <= max(1 / UNIT + 1e-7, p.topk(5, 1).values[:, 4].max().item())


def test_all_classes_kept_are_the_probabilities() -> None:
    """As k → C, sparse labels become the dense ones."""
    p = probabilities(0, 50, 12)
    errors = [(top_k(p, k).dense() - p).abs().sum(1).mean().item() for k in (1, 3, 6, 12)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 12 / UNIT


@pytest.mark.parametrize("p", [torch.tensor([[0.5, 0.6]]), torch.tensor([[-0.5, 1.5]]), torch.tensor([[torch.nan, 1]])])
def test_what_is_no_distribution_is_refused(p: Tensor) -> None:
    with pytest.raises(BadSetting, match=r"labels must be probabilities \[B, C\] that sum to 1"):
        top_k(p, 1)
    with pytest.raises(BadSetting, match="k must be at least 1"):
        top_k(torch.tensor([[0.5, 0.5]]), 0)


# A store


def ramps(i: int, classes: int, n: int = 5) -> Said:
    """Labels of a shard whose every number says where it stands."""
    row = torch.arange(n) + n * i
    p = probabilities(i, n, classes)
    return Said(row, {"at": row[:, None].double() / 7, "seed": row * 2**40 + 1}, top_k(p, 3))


@pytest.mark.parametrize("classes", [3, 256, 257, 65_536, 65_537])
def test_rows_come_back_in_any_order_to_the_bit(tmp_path: Path, classes: int) -> None:
    """However many bytes a class takes, and whatever shard a row is in."""
    write_labels(tmp_path, {"classes": classes}, 4, lambda i: ramps(i, classes, n=3 + i))
    every = [ramps(i, classes, n=3 + i) for i in range(4)]
    labels, rows = Labels(tmp_path), Rng(0).integers(50, 18)
    assert len(labels) == 18
    got = labels.read(rows)
    for name in ("at", "seed"):
        assert torch.equal(got.view[name], torch.cat([said.view[name] for said in every])[rows])
    assert torch.equal(got.row, torch.cat([said.row for said in every])[rows])
    for part in ("index", "units"):
        assert torch.equal(getattr(got.label, part), torch.cat([getattr(said.label, part) for said in every])[rows])


def mapped(tensor: Tensor, path: Path) -> bool:
    """Whether a tensor's memory is a mapping of that file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        ends = [int(end, 16) for end in line.split()[0].split("-")]
        if ends[0] <= tensor.data_ptr() < ends[1]:
            return line.endswith(str(path))
    return False


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="memory maps are read from /proc")
def test_shards_are_mapped_and_only_drawn_pages_are_loaded(tmp_path: Path) -> None:
    n = 200_000

    def make(i: int) -> Said:
        units = torch.full((n, 10), UNIT // 10)
        return Said(torch.arange(n), {"z": torch.zeros(n, 150)}, TopK(torch.arange(10).expand(n, 10), units, 10))

    write_labels(tmp_path, {"classes": 10}, 1, make)
    before, size = resident(), (tmp_path / "00000.safetensors").stat().st_size
    labels = Labels(tmp_path)
    shard = labels._shards[0]  # pyright: ignore[reportPrivateUsage]
    assert all(mapped(tensor, tmp_path / "00000.safetensors") for tensor in shard.tensors.values())
    labels.read(torch.tensor([0, n // 2, n - 1]))
    assert resident() - before < size / 4  # pages are large


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


# Views


@seeds
@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_a_replayed_view_has_the_same_bits_in_every_batch(seed: int, n: int) -> None:
    x, views, rng = split()[0][:200], Jitter(), Rng(("replay", seed))
    view = views.draw(x, rng)
    whole, some = views.replay(x, view), rng.integers(n, 200)
    assert torch.equal(views.replay(x[some], {name: value[some] for name, value in view.items()}), whole[some])


def test_views_are_jitter() -> None:
    """The same affine maps from the same numbers; the noise has a seed of its own."""
    x = split()[0][:64]
    moved = Jitter(noise=0.0)
    assert torch.equal(moved.replay(x, moved.draw(x, Rng(3))), jitter(x, Rng(3), noise=0.0))
    noisy = Jitter(shift=0.0, turn=0.0, scale=0.0, noise=0.3)
    noise = noisy.replay(x, noisy.draw(x, Rng(3))) - x
    assert noise.std().item() == pytest.approx(0.3, rel=0.05) and noise.mean().abs() < 0.02
    assert not torch.equal(noise[0], noise[1])


# What learns from it


@dataclass(frozen=True)
class Shifted:
    """Views that are moved by a number."""

    by: float = 1.0

    def draw(self, x: Tensor, rng: Rng) -> dict[str, Tensor]:
        return {"z": rng.normal(len(x), 1, dtype=x.dtype)}

    def replay(self, x: Tensor, view: Mapping[str, Tensor]) -> Tensor:
        return x + self.by * view["z"]


def store(folder: Path, *, copies: int = 3, k: int = 4, temperature: float = 1.0) -> tuple[nn.Module, Tensor, Replayed]:
    torch.manual_seed(0)
    teacher, x = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5)), torch.randn(20, 5)
    labels = reinforce_data(folder, teacher, x, Shifted(), copies=copies, k=k, temperature=temperature, rows=16)
    assert teacher.training
    return teacher.eval(), x, Replayed(labels, x, Shifted())


def test_every_sample_has_its_copies_and_the_teachers_own_word(tmp_path: Path) -> None:
    teacher, _, source = store(tmp_path, temperature=2.0)
    said = source.labels.read(torch.arange(60))
    assert said.row.bincount().tolist() == [3] * 20
    batch = source.take(32, Rng(5))
    expected = (teacher(batch["x"]) / 2).softmax(1)
    assert (batch["y"] - expected).abs().max() < 1 / UNIT + 1e-6
    assert len(torch.unique(said.view["z"])) == 60


def test_a_run_on_stored_labels_is_the_run_on_those_rows(tmp_path: Path) -> None:
    """Drawn like `Dataset`, and cut into micro-batches like it: the same bits."""
    _, x, source = store(tmp_path)
    said = source.labels.read(torch.arange(60))
    seen = Shifted().replay(x[said.row], said.view)

    def weights(data: Source, accumulate: int = 1) -> Tensor:
        torch.manual_seed(1)
        student = nn.Linear(5, 4)
        settings = {"steps": 5, "batch": 16, "optim": Adam(lr=0.1), "accumulate": accumulate}
        distill(None, student, CrossEntropy(), data, **settings).finish()  # type: ignore[arg-type]
        return student.weight.detach()

    assert torch.equal(weights(source), weights(Dataset(x=seen, y=said.label.dense())))
    close(weights(source, accumulate=4), weights(source), 1e-6)


def test_stored_labels_of_all_classes_are_kd_without_labels(tmp_path: Path) -> None:
    """CE to the kept probabilities differs from KL by the teacher's entropy, which has no gradient."""
    teacher, _, source = store(tmp_path)
    grads = []
    for objective, who in ((CrossEntropy(), None), (KD(temperature=1.0, alpha=1.0), teacher)):
        torch.manual_seed(1)
        student = nn.Linear(5, 4)
        distill(who, student, objective, source, steps=3, batch=16, optim=Adam(lr=0.1)).finish()
        grads.append(student.weight.detach())
    close(grads[0], grads[1], 1e-3)


def test_an_ensemble_says_its_mean(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pair, x = [nn.Linear(5, 4), nn.Linear(5, 4)], torch.randn(20, 5)
    source = Replayed(reinforce_data(tmp_path, pair, x, Shifted(), copies=1, k=4), x, Shifted())
    batch = source.take(8, Rng(0))
    mean = sum(cast(Tensor, net(batch["x"]).softmax(1)) for net in pair) / 2
    assert (batch["y"] - mean).abs().max() < 1 / UNIT + 1e-6


def test_other_samples_or_views_are_refused(tmp_path: Path) -> None:
    _, x, source = store(tmp_path)
    with pytest.raises(Incompatible, match=r"needs the views that the labels are of, Shifted\(by=1.0\), got Shifted\("):
        Replayed(source.labels, x, Shifted(by=2.0))
    with pytest.raises(Incompatible, match=f"needs the samples that the labels are of, {fingerprint(x)}, got"):
        Replayed(source.labels, x + 1, Shifted())
