"""Metrics against closed forms, against brute force, and on sets whose answer is known."""

import math

import pytest
import torch
from torch import Tensor

from limbeck import evaluate
from limbeck.errors import BadSetting
from limbeck.evaluate import energy_distance, frechet, nearest_distance, precision_recall
from limbeck.problems.digits import HELDOUT, TRAIN, DigitFeatures, jitter, split
from limbeck.rng import Rng

METRICS = ["energy_distance", "frechet", "nearest_distance", "precision_recall"]


def normal(n: int, d: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return Rng((seed, "evaluate")).normal(n, d, dtype=dtype)


def exact(mean: Tensor, root: Tensor, n: int, seed: int) -> Tensor:
    """n points whose sample mean and sample covariance are ``mean`` and ``root @ root.T``, to rounding."""
    z = normal(n, len(mean), seed)
    z = z - z.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.atleast_2d(z.T.cov())), z.T, upper=False).T
    return white @ root.T + mean


# Fréchet distance


def test_frechet_of_diagonal_gaussians() -> None:
    mean_a, mean_b = torch.tensor([0.0, 1.0, -2.0]).double(), torch.tensor([0.5, 1.0, 2.0]).double()
    std_a, std_b = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([3.0, 0.1, 0.5]).double()
    a, b = exact(mean_a, std_a.diag(), 40, 0), exact(mean_b, std_b.diag(), 70, 1)
    closed = ((mean_a - mean_b) ** 2).sum() + ((std_a - std_b) ** 2).sum()
    assert frechet(a, b) == pytest.approx(closed.item(), rel=1e-10)


def test_frechet_of_gaussians_that_do_not_commute() -> None:
    # In two dimensions tr M^½ = √(tr M + 2√det M), and Σ_a Σ_b has the eigenvalues of the symmetric product.
    root_a, root_b = torch.tensor([[1.0, 0.0], [0.9, 0.4]]).double(), torch.tensor([[2.0, 0.0], [-1.5, 0.3]]).double()
    a, b = exact(torch.zeros(2).double(), root_a, 50, 2), exact(torch.ones(2).double(), root_b, 60, 3)
    cov_a, cov_b = root_a @ root_a.T, root_b @ root_b.T
    product = cov_a @ cov_b
    overlap = (product.trace() + 2 * product.det().sqrt()).sqrt()
    closed = 2 + cov_a.trace() + cov_b.trace() - 2 * overlap
    assert (cov_a @ cov_b - cov_b @ cov_a).abs().max() > 0.1
    assert frechet(a, b) == pytest.approx(closed.item(), rel=1e-10)


def test_frechet_is_zero_on_equal_sets_symmetric_and_invariant() -> None:
    a, b = normal(200, 6, 4), 2 * normal(100, 6, 5) + 1
    turn = torch.linalg.qr(normal(6, 6, 6)).Q
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet(a, b) > 1
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-9)
    assert frechet(a @ turn + 3, b @ turn + 3) == pytest.approx(frechet(a, b), rel=1e-9)
    assert frechet(10 * a, 10 * b) == pytest.approx(100 * frechet(a, b), rel=1e-9)


def test_frechet_of_degenerate_sets_is_finite() -> None:
    flat = torch.cat([normal(50, 2, 7), torch.zeros(50, 62).double()], 1)  # rank 2 of 64, and fewer points than axes
    assert frechet(flat, flat + 1) == pytest.approx(64, rel=1e-6)


def test_frechet_computes_in_double() -> None:
    a, b = normal(300, 4, 8) * 1e-3 + 1e3, normal(300, 4, 9) * 1e-3 + 1e3
    assert frechet(a, b) < 1e-6
    assert isinstance(frechet(a.float(), b.float()), float)
    close = normal(300, 4, 8, torch.float32)
    assert frechet(close, close * 1.0001) == pytest.approx(1e-8 * close.double().T.cov().trace().item(), rel=0.2)


# precision and recall


def brute_precision_recall(real: Tensor, fake: Tensor, k: int) -> tuple[float, float]:
    def reach(points: list[list[float]]) -> list[float]:
        return [sorted(math.dist(p, q) for j, q in enumerate(points) if j != i)[k - 1] for i, p in enumerate(points)]

    def share(points: list[list[float]], manifold: list[list[float]]) -> float:
        radii = reach(manifold)
        hit = [any(math.dist(p, q) <= r for q, r in zip(manifold, radii, strict=True)) for p in points]
        return sum(hit) / len(points)

    r, f = real.tolist(), fake.tolist()
    return share(f, r), share(r, f)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_recall_against_brute_force(k: int) -> None:
    real, fake = normal(60, 3, 10), 0.7 * normal(45, 3, 11) + 1.2
    got = precision_recall(real, fake, k)
    assert got == pytest.approx(brute_precision_recall(real, fake, k), abs=1e-12)
    assert 0 < got[1] < 1 and got[0] > 0  # so that there is something to count


def test_precision_recall_of_equal_and_of_disjoint_sets() -> None:
    a = normal(50, 8, 12)
    assert precision_recall(a, a) == (1.0, 1.0)
    assert precision_recall(a, a + 100) == (0.0, 0.0)


def test_recall_sees_a_dropped_mode_and_precision_an_invented_one() -> None:
    left, right = normal(40, 4, 13), normal(40, 4, 14) + 50
    both = torch.cat([left, right])
    assert precision_recall(both, left) == (1.0, 0.5)
    assert precision_recall(left, both) == (0.5, 1.0)


def test_precision_recall_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = normal(60, 3, 15), normal(45, 3, 16)
    whole = precision_recall(real, fake), energy_distance(real, fake), nearest_distance(real, fake)
    monkeypatch.setattr("limbeck.evaluate.metrics._ROWS", 7)
    cut = precision_recall(real, fake), energy_distance(real, fake), nearest_distance(real, fake)
    assert whole[0] == cut[0]
    assert whole[1] == pytest.approx(cut[1], abs=1e-8)
    assert torch.equal(whole[2], cut[2])


# energy distance


def test_energy_distance_against_brute_force() -> None:
    a, b = normal(17, 3, 17), normal(23, 3, 18) + 0.5

    def mean(x: Tensor, y: Tensor) -> float:
        return sum(math.dist(p, q) for p in x.tolist() for q in y.tolist()) / (len(x) * len(y))

    assert energy_distance(a, b) == pytest.approx(2 * mean(a, b) - mean(a, a) - mean(b, b), abs=1e-8)


def test_energy_distance_of_gaussians() -> None:
    # In one dimension E|x − y| of N(m, 2) is 2·φ(m/√2)·√2 + m·(2Φ(m/√2) − 1).
    m, n = 1.5, 4000
    u = (torch.arange(n).double() + 0.5) / n
    a = torch.special.ndtri(u)[:, None]  # the quantiles: no sampling error

    def mean(gap: float) -> float:
        return 2 / math.sqrt(math.pi) * math.exp(-gap * gap / 4) + gap * math.erf(gap / 2)

    assert energy_distance(a, a + m) == pytest.approx(2 * mean(m) - 2 * mean(0), rel=2e-3)
    assert energy_distance(a, a) == pytest.approx(0, abs=1e-12)


def test_energy_distance_sees_what_frechet_cannot() -> None:
    a = torch.tensor([[-1.0], [1.0]]).double().repeat(100, 1)
    b = exact(torch.zeros(1).double(), a.T.cov().reshape(1, 1).sqrt(), 200, 19)
    assert frechet(a, b) == pytest.approx(0, abs=1e-9)
    assert energy_distance(a, b) > 0.05


# nearest distance


def test_nearest_distance_against_brute_force() -> None:
    x, reference = normal(30, 12, 20).reshape(30, 3, 2, 2), normal(40, 12, 21).reshape(40, 3, 2, 2)
    flat = [r.tolist() for r in reference.flatten(1)]
    brute = [min(math.dist(p.tolist(), q) for q in flat) for p in x.flatten(1)]
    assert nearest_distance(x, reference).tolist() == pytest.approx(brute, rel=1e-12)


def test_nearest_distance_of_a_copy_is_exactly_zero() -> None:
    reference = normal(50, 64, 22, torch.float32) + 100
    assert nearest_distance(reference.flip(0), reference).abs().max() == 0


# refusals and effects


@pytest.mark.parametrize("metric", METRICS)
def test_bad_sets_are_refused(metric: str) -> None:
    f, good = getattr(evaluate, metric), torch.randn(20, 4)
    for bad in (torch.randn(20, 5), torch.randn(0, 4), good.log()):
        for pair in ((good, bad), (bad, good)):
            with pytest.raises(BadSetting):
                f(*pair)
    with pytest.raises(BadSetting):
        precision_recall(good, good, k=20)
    with pytest.raises(BadSetting):
        precision_recall(good, good, k=0)


@pytest.mark.parametrize("metric", METRICS)
def test_metrics_leave_their_arguments_and_the_generator_alone(metric: str) -> None:
    a, b = normal(20, 4, 23), normal(30, 4, 24)
    before, state = (a.clone(), b.clone()), torch.get_rng_state()
    getattr(evaluate, metric)(a, b)
    assert torch.equal(a, before[0]) and torch.equal(b, before[1])
    assert torch.equal(state, torch.get_rng_state())


# the digits that the metrics are for


def test_split_is_fixed_stratified_and_disjoint() -> None:
    train_x, train_y, heldout_x, heldout_y = split()
    assert train_x.shape == (TRAIN, 1, 8, 8) and heldout_x.shape == (HELDOUT, 1, 8, 8)
    assert train_x.dtype == torch.float32 and train_y.dtype == torch.int64
    assert train_x.min() == -1 and train_x.max() == 1
    assert nearest_distance(heldout_x, train_x).min() > 0.1  # also: no image occurs twice in the data set
    counts = train_y.bincount().double() / TRAIN - heldout_y.bincount().double() / HELDOUT
    assert counts.abs().max() < 1 / HELDOUT
    pixels = (torch.arange(64.0).reshape(8, 8) * (train_x + 1)).sum().item()
    assert pixels == pytest.approx(split()[0].add(1).mul(torch.arange(64.0).reshape(8, 8)).sum().item())


def test_split_ignores_the_global_generator() -> None:
    torch.manual_seed(1)
    a = split()[0]
    torch.manual_seed(2)
    assert torch.equal(a, split()[0])


def test_features_are_standardised_on_the_set_given() -> None:
    net, x = DigitFeatures().eval(), split()[0][:300]
    before = net.features(x)
    net.standardise(x)
    after = net.features(x)
    assert before.std(0).max() < 0.9
    assert torch.allclose(after.mean(0), torch.zeros(64), atol=1e-4)
    assert torch.allclose(after.std(0), torch.ones(64), atol=1e-4)
    assert set(net.state_dict()) >= {"mean", "std"}


def test_jitter_moves_by_whole_pixels_exactly() -> None:
    x = torch.full((1, 1, 8, 8), -1.0)
    x[0, 0, 3, 3] = 1.0
    moved = jitter(x.expand(200, 1, 8, 8), Rng(0), shift=1.0, turn=0.0, scale=0.0, noise=0.0)
    where = (moved + 1).flatten(2).argmax(-1)
    assert len(where.unique()) > 8  # in both directions
    inside = moved[:, 0, 1:-1, 1:-1].amax((1, 2)) > -0.9
    assert moved.min() >= -1 and inside.float().mean() > 0.9  # what comes in is background
