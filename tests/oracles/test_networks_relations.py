"""Contrast and relations against sums written out, against each other, and under maps that must not change them."""

import math
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck import (
    CKA,
    CRD,
    RKD,
    Adam,
    Contrast,
    Dataset,
    MultiScaleContrast,
    OnFeatures,
    Rng,
    angles,
    cka,
    cosines,
    distill,
    info_nce,
    noise_contrast,
    relational,
    relative_distances,
    windowed,
)
from limbeck.engine.tick import Tick
from limbeck.errors import BadSetting, Incompatible
from tests.oracles.exact import F64, close, gradient, seeds

NOTHING = cast(Tick, SimpleNamespace())
PAIRS = {"1": "1"}


def features(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    rng = Rng(("relations", seed))
    return [rng.normal(*shape, dtype=F64) for shape in shapes]


def rotation(seed: int, n: int) -> Tensor:
    return torch.linalg.qr(features(seed, (n, n))[0]).Q


# Contrast


@seeds
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_info_nce_is_cross_entropy_over_the_batch(seed: int, temperature: float) -> None:
    q, k, more = features(seed, (6, 4), (6, 4), (3, 4))
    found = F.cosine_similarity(q[:, None], k[None], dim=2) / temperature
    close(info_nce(q, k, temperature=temperature), F.cross_entropy(found, torch.arange(6), reduction="none"))
    wider = F.cosine_similarity(q[:, None], torch.cat([k, more])[None], dim=2) / temperature
    expected = F.cross_entropy(wider, torch.arange(6), reduction="none")
    close(info_nce(q, k, temperature=temperature, others=more), expected)
    close(info_nce(q, k, temperature=temperature, others=more.expand(6, 3, 4)), expected)


@seeds
def test_negatives_of_its_own_are_those_of_no_other(seed: int) -> None:
    q, k, own = features(seed, (5, 4), (5, 4), (5, 2, 4))
    value = info_nce(q, k, others=own)
    for i in range(5):
        close(value[i], info_nce(q, k, others=own[i])[i])


@seeds
def test_info_nce_knows_directions_alone_and_bounds_what_is_known(seed: int) -> None:
    q, k = features(seed, (6, 4), (6, 4))
    close(info_nce(3 * q, k * torch.arange(1, 7)[:, None]), info_nce(q, k))
    close(info_nce(q @ rotation(seed, 4), k @ rotation(seed, 4)), info_nce(q, k))
    close(info_nce(torch.ones(6, 4, dtype=F64), k[:1].expand(6, 4)), torch.full((6,), math.log(6), dtype=F64))
    close(info_nce(torch.eye(6, dtype=F64), torch.eye(6, dtype=F64), temperature=1e-3), torch.zeros(6, dtype=F64))


@seeds
def test_info_nce_of_a_stack_is_that_of_each(seed: int) -> None:
    q, k = features(seed, (3, 5, 4), (3, 5, 4))
    close(info_nce(q, k), torch.stack([info_nce(a, b) for a, b in zip(q, k, strict=True)]))


@seeds
def test_noise_contrast_is_the_papers_classifier_written_out(seed: int) -> None:
    q, k = features(seed, (5, 4), (5, 4))
    e = (F.cosine_similarity(q[:, None], k[None], dim=2) / 0.2).exp()
    h = e / (e + 4 / 100)
    expected = [-h[i, i].log() - sum((1 - h[i, j]).log() for j in range(5) if j != i) for i in range(5)]
    close(noise_contrast(q, k, temperature=0.2, examples=100), torch.stack(expected))


@seeds
def test_one_window_as_large_as_the_map_is_contrast_of_pooled_features(seed: int) -> None:
    s, t = features(seed, (6, 5, 4, 4), (6, 5, 4, 4))
    one = MultiScaleContrast(pairs=PAIRS, windows=(0,), channels=0.0)
    pooled = Contrast(pairs=PAIRS).value(s.mean((2, 3)), t.mean((2, 3)), NOTHING)
    close(one.value(s, t, NOTHING), pooled)
    close(MultiScaleContrast(pairs=PAIRS, windows=(4,), channels=0.0).value(s, t, NOTHING), pooled)
    tokens = one.value(*(x.flatten(2).mT for x in (s, t)), NOTHING)
    close(tokens, pooled)


@seeds
def test_windows_are_contrasted_one_by_one_both_ways(seed: int) -> None:
    s, t = features(seed, (6, 5, 3, 3), (6, 5, 3, 3))
    rows, columns = list[Tensor](), list[Tensor]()
    for i in range(2):
        for j in range(2):
            a, b = (x[:, :, i : i + 2, j : j + 2].mean((2, 3)) for x in (s, t))
            rows.append(info_nce(a, b).mean())
            columns.append(info_nce(a.T, b.T).mean())
    value = MultiScaleContrast(pairs=PAIRS, windows=(2,), channels=0.5).value(s, t, NOTHING)
    close(value, torch.stack(rows).mean() + 0.5 * torch.stack(columns).mean())
    assert windowed(s, (0, 2, 3)).shape == (1 + 4 + 1, 6, 5)


def test_contrast_learns_which_is_which() -> None:
    teacher, student, data = nets()
    run = distill(teacher, student, Contrast(pairs=PAIRS), data, steps=300, batch=8, optim=Adam(lr=1e-2))
    losses = [step.losses["contrast"] for step in run]
    assert sum(losses[-20:]) < sum(losses[:20]) / 2


# Relations


@seeds
def test_relational_losses_are_sums_over_pairs_and_triples(seed: int) -> None:
    s, t = features(seed, (5, 3), (5, 4))
    apart, turned = relational(s, t)

    def huber(d: Tensor) -> Tensor:
        return torch.where(d.abs() <= 1, d**2 / 2, d.abs() - 0.5)

    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    far = [torch.stack([(x[i] - x[j]).norm() for i, j in pairs]) for x in (s, t)]
    close(apart, huber(far[0] / far[0].mean() - far[1] / far[1].mean()).mean())
    triples = [(i, j, k) for i, j in pairs for k in range(5) if k not in (i, j)]
    cos = [torch.stack([F.cosine_similarity(x[i] - x[j], x[k] - x[j], dim=0) for i, j, k in triples]) for x in (s, t)]
    close(turned, huber(cos[0] - cos[1]).mean())
    close(RKD(pairs=PAIRS, distance=3.0, angle=0.5).value(s, t, NOTHING), 3 * apart + 0.5 * turned)


@seeds
def test_relations_do_not_know_similarities_of_space(seed: int) -> None:
    """Rotations, shifts and a scale; angles of a right triangle are what they are."""
    (s,) = features(seed, (6, 4))
    same = 3 * s @ rotation(seed, 4) + 7
    close(relative_distances(same), relative_distances(s))
    close(angles(same), angles(s))
    for part in relational(same, s):
        close(part, torch.zeros((), dtype=F64))
    corner = angles(torch.tensor([[3.0, 0.0], [0.0, 0.0], [0.0, 4.0]], dtype=F64))
    assert corner[0, 1, 2].item() == pytest.approx(3 / 5) and corner[2, 0, 1].item() == pytest.approx(4 / 5)


@seeds
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_gradients_of_distances_are_those_of_their_definition(seed: int, offset: float) -> None:
    x, w = features(seed, (5, 3), (5, 5))

    def by_hand(x: Tensor) -> Tensor:
        apart = torch.stack([torch.stack([((a - b) ** 2).sum().clamp_min(1e-30).sqrt() for b in x]) for a in x])
        return (apart / (apart.sum() / 20) * w).sum()

    (mine,), (known,) = (gradient(f, x + offset) for f in (lambda x: (relative_distances(x) * w).sum(), by_hand))
    close(mine, known, 1e-9)
    assert torch.autograd.gradgradcheck(relative_distances, (x.clone().requires_grad_(),))


def test_relations_of_equal_examples_have_finite_gradients() -> None:
    x = torch.ones(4, 3, dtype=F64)
    other = features(0, (4, 3))[0]
    for loss in (lambda s: sum(relational(s, other)), lambda s: cka(s, other), lambda s: info_nce(0 * s, other).sum()):
        (g,) = gradient(loss, x)
        assert g.isfinite().all()


@seeds
def test_cka_is_the_norm_of_the_cross_covariance_over_those_of_its_sides(seed: int) -> None:
    x, y = features(seed, (8, 3), (8, 5))
    a, b = (z - z.mean(0) for z in (x, y))
    close(cka(x, y), (b.T @ a).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm()))
    close(CKA(pairs=PAIRS).value(x, y, NOTHING), 1 - cka(x, y))


@seeds
def test_cka_does_not_know_rotations_shifts_and_scales_but_other_maps(seed: int) -> None:
    x, y = features(seed, (8, 3), (8, 5))
    close(cka(4 * x @ rotation(seed, 3) + 2, y), cka(x, y))
    close(cka(x, y), cka(y, x))
    close(cka(x, 5 * x @ rotation(seed, 3)), torch.ones((), dtype=F64))
    close(cka(x, F.pad(x, (0, 4))), torch.ones((), dtype=F64))
    assert (cka(x * torch.tensor([1.0, 5.0, 1.0], dtype=F64), y) - cka(x, y)).abs() > 1e-3
    assert 0 <= cka(x, y) < 1


def test_cka_of_orthogonal_features_is_nothing() -> None:
    x = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]], dtype=F64)
    y = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=F64)
    close(cka(x, y), torch.zeros((), dtype=F64))


# Runs


def nets() -> tuple[nn.Module, nn.Module, Dataset]:
    torch.manual_seed(0)
    teacher, student = (nn.Sequential(nn.Linear(4, n), nn.Tanh(), nn.Linear(n, 3)).double() for n in (6, 5))
    return teacher, student, Dataset(x=features(9, (32, 4))[0], y=torch.arange(32) % 3)


@pytest.mark.parametrize("objective", [RKD(pairs=PAIRS), CKA(pairs=PAIRS)])
def test_relations_need_no_projector_between_widths(objective: OnFeatures) -> None:
    teacher, student, data = nets()
    run = distill(teacher, student, objective, data, steps=1, batch=8)
    x = data.take(8, Rng((0, 0, "data"), part=slice(0, 8), total=8))["x"]
    with torch.no_grad():
        expected = objective.value(student[:2](x), teacher[:2](x), NOTHING).item()
    assert run.tick().losses[objective.name] == pytest.approx(expected, rel=1e-12)
    assert [*run.cast.roles] == ["student"]


@pytest.mark.parametrize(
    ("objective", "least"), [(RKD(pairs=PAIRS), 3), (CKA(pairs=PAIRS), 2), (Contrast(pairs=PAIRS), 2)]
)
def test_a_batch_without_relations_is_refused(objective: OnFeatures, least: int) -> None:
    teacher, student, data = nets()
    need = {2: "two or more", 3: "3 or more"}[least] if isinstance(objective, Contrast) else f"{least} or more"
    with pytest.raises(Incompatible, match=f"needs a batch of {need} examples, got {least - 1}; batch=64 would fit"):
        distill(teacher, student, objective, data, steps=1, batch=least - 1).finish()


def test_mistakes_are_named() -> None:
    with pytest.raises(BadSetting, match="RKD needs a weight above 0 for distances or angles"):
        RKD(pairs=PAIRS, distance=0, angle=0)
    with pytest.raises(BadSetting, match="temperature"):
        Contrast(pairs=PAIRS, temperature=0)
    with pytest.raises(BadSetting, match="examples"):
        CRD(pairs=PAIRS, examples=0)
    with pytest.raises(BadSetting, match=r"MultiScaleContrast needs windows of side 0 or more, got \(\)"):
        MultiScaleContrast(pairs=PAIRS, windows=())
    odd = features(0, (4, 5, 3))[0]
    with pytest.raises(Incompatible, match=r"needs maps or a square of tokens, got features \[4, 5, 3\]"):
        MultiScaleContrast(pairs=PAIRS).value(odd, odd, NOTHING)
    maps = [x.float() for x in features(0, (4, 2, 3, 3))]
    with pytest.raises(Incompatible, match="needs maps of 5 × 5 or more, got maps 3 × 3"):
        windowed(maps[0], (0, 5))


@seeds
def test_cosines_of_nothing_are_nothing(seed: int) -> None:
    q, k = features(seed, (3, 4), (5, 4))
    q[1] = 0
    close(cosines(q, k)[1], torch.zeros(5, dtype=F64))
