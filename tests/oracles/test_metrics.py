"""Metrics of neighbourhoods, kernels, slices and variety: closed forms, averages over all splits, invariances."""

import math
from collections.abc import Callable
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from limbeck import Rng, evaluate
from limbeck.errors import BadSetting
from limbeck.evaluate import (
    density_coverage,
    diversity,
    maximum_mean_discrepancy,
    mode_entropy,
    prdc,
    precision_recall,
    sliced_wasserstein,
    vendi,
)
from limbeck.evaluate.comparison import distances
from tests.oracles.exact import F64, assert_mean, close, tensor

OF_TWO: list[Callable] = [
    density_coverage,
    maximum_mean_discrepancy,
    mode_entropy,
    prdc,
    sliced_wasserstein,
]
OF_ONE: list[Callable] = [diversity, vendi]


def normal(n: int, d: int, seed: int = 0) -> Tensor:
    return Rng((seed, "metrics")).normal(n, d, dtype=F64)


def turned(x: Tensor) -> Tensor:
    """The points turned and moved."""
    return x @ torch.linalg.qr(normal(x.shape[1], x.shape[1], 99)).Q + 3


def splits(x: Tensor, n: int) -> list[tuple[Tensor, Tensor]]:
    """All ways to take n of the points and leave the rest."""
    ways = [torch.tensor(way) for way in combinations(range(len(x)), n)]
    rest = [torch.tensor([i for i in range(len(x)) if i not in way]) for way in combinations(range(len(x)), n)]
    return [(x[one], x[other]) for one, other in zip(ways, rest, strict=True)]


def column(*values: float) -> Tensor:
    return tensor(*values)[:, None]


# density and coverage


def test_density_and_coverage_by_hand() -> None:
    """Reals 0, 1, 3, 7 with k = 1 have balls of radius 1, 1, 2, 4; with k = 2 of 3, 2, 3, 6. Edges belong to a ball."""
    real, fake = column(0, 1, 3, 7), column(0.5, 3, 20)
    assert density_coverage(real, fake, k=1) == ((2 + 2) / 3, 1.0)
    assert density_coverage(real, fake[:1], k=1) == (2.0, 0.5)
    assert density_coverage(real, fake[2:], k=1) == (0.0, 0.0)
    assert density_coverage(real, fake, k=2) == ((3 + 4) / (2 * 3), 1.0)


def brute(real: Tensor, fake: Tensor, k: int) -> tuple[float, float]:
    r, f = real.tolist(), fake.tolist()
    radii = [sorted(math.dist(p, q) for j, q in enumerate(r) if j != i)[k - 1] for i, p in enumerate(r)]
    inside = [[math.dist(p, q) <= radius for q in f] for p, radius in zip(r, radii, strict=True)]
    return sum(map(sum, inside)) / (k * len(f)), sum(map(any, inside)) / len(r)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_density_and_coverage_against_brute_force(k: int) -> None:
    real, fake = normal(60, 3, 1), 0.7 * normal(45, 3, 2) + 0.8
    got = density_coverage(real, fake, k)
    assert got == pytest.approx(brute(real, fake, k), abs=1e-12)
    assert 0 < got[0] != 1 and 0 < got[1] < 1


@pytest.mark.parametrize(("n", "m", "k"), [(4, 3, 1), (4, 3, 2), (3, 5, 2), (5, 2, 3)])
def test_expectations_for_equal_distributions_are_exact(n: int, m: int, k: int) -> None:
    """Over all ways to call n of n + m points real, density is 1 and coverage 1 − Π (n − i)/(n + m − i)."""
    got = [density_coverage(real, fake, k) for real, fake in splits(normal(n + m, 2, n), n)]
    coverage = 1 - math.prod((n - i) / (n + m - i) for i in range(1, k + 1))
    assert torch.tensor(got, dtype=F64).mean(0).tolist() == pytest.approx([1, coverage], rel=1e-12)


def test_coverage_sees_a_dropped_mode() -> None:
    left, right = normal(40, 4, 3), normal(40, 4, 4) + 50
    density, coverage = density_coverage(torch.cat([left, right]), left)
    assert coverage == 0.5 and density > 0.9


def test_density_is_not_fooled_by_one_stray_real() -> None:
    """Its ball holds everything, so that precision is full; to density it is one ball of fifty."""
    real = torch.cat([normal(49, 2, 5), tensor([1000.0, 0.0])])
    fake = normal(50, 2, 6) + tensor(500.0, 0.0)
    assert precision_recall(real, fake)[0] == 1
    assert density_coverage(real, fake) == (0.2, 1 / 50)


def test_fakes_that_scatter_cannot_buy_coverage() -> None:
    """Recall takes balls around the fakes, so a few far apart reach all reals; coverage takes those of the reals."""
    real, fake = normal(50, 2, 7), 100 * normal(50, 2, 8)
    assert precision_recall(real, fake)[1] > 0.9 and density_coverage(real, fake)[1] < 0.2


def test_prdc_is_the_four_figures() -> None:
    real, fake = normal(60, 3, 9), 0.8 * normal(45, 3, 10) + 0.5
    for k in (1, 5):
        (precision, recall), (density, coverage) = precision_recall(real, fake, k), density_coverage(real, fake, k)
        assert prdc(real, fake, k) == {
            "precision": precision,
            "recall": recall,
            "density": density,
            "coverage": coverage,
        }


def test_a_judge_gives_the_four_figures() -> None:
    real, fake = normal(60, 3, 9), normal(45, 3, 10)
    figures = distances(fake, SimpleNamespace(features=lambda x: x, reference=lambda: real))  # type: ignore[arg-type]
    assert {name: figures[name] for name in prdc(real, fake)} == prdc(real, fake)


# sliced Wasserstein distance


@pytest.mark.parametrize("p", [1.0, 2.0, 3.5])
@pytest.mark.parametrize(("n", "m"), [(5, 5), (6, 4), (7, 3), (1, 8), (12, 18)])
def test_on_a_line_it_is_the_exact_distance(p: float, n: int, m: int) -> None:
    """Repeat each point until both sets have n·m, and pair them by rank."""
    a, b = normal(n, 1, 11), 2 * normal(m, 1, 12) + 1
    pairs = a.repeat(m, 1).sort(0).values - b.repeat(n, 1).sort(0).values
    expected = (pairs.abs() ** p).mean().item() ** (1 / p)
    assert sliced_wasserstein(a, b, p=p, projections=3) == pytest.approx(expected, rel=1e-12)


def test_unequal_sizes_by_hand() -> None:
    """{0, 3} and {0, 1, 2}: of the levels ⅓, ½ − ⅓, ⅔ − ½ and ⅓ the gaps are 0, 1, 2, 1."""
    a, b = column(3, 0), column(2, 0, 1)
    assert sliced_wasserstein(a, b, p=1) == pytest.approx(1 / 6 + 2 / 6 + 1 / 3, rel=1e-12)
    assert sliced_wasserstein(a, b, p=2) == pytest.approx(math.sqrt(1 / 6 + 4 / 6 + 1 / 3), rel=1e-12)


def test_between_gaussians_on_a_line() -> None:
    """W_2² = (m_a − m_b)² + (s_a − s_b)², on quantiles instead of draws."""
    u = (torch.arange(4000, dtype=F64) + 0.5) / 4000
    z = torch.special.ndtri(u)[:, None]
    assert sliced_wasserstein(0.5 * z, 2 * z + 1) == pytest.approx(math.sqrt(1 + 1.5**2), rel=1e-3)


@pytest.mark.parametrize("d", [2, 5])
def test_a_shift_counts_by_its_share_on_a_line(d: int) -> None:
    """SW_2² of a set and its copy moved by v is E(θ·v)² = ‖v‖²/d, for θ on the sphere."""
    x, v = normal(20, d, 13), normal(1, d, 14)
    squares = [tensor(sliced_wasserstein(x, x + v, projections=1, seed=seed) ** 2) for seed in range(3000)]
    assert_mean(squares, (v**2).sum(1) / d)
    many = sliced_wasserstein(x, x + v, projections=20_000) ** 2
    assert many == pytest.approx((v**2).sum().item() / d, rel=0.05)


def test_sliced_wasserstein_is_a_distance() -> None:
    a, b, c = normal(20, 3, 15), 2 * normal(15, 3, 16), normal(30, 3, 17) - 1
    ab, bc, ac = sliced_wasserstein(a, b), sliced_wasserstein(b, c), sliced_wasserstein(a, c)
    assert sliced_wasserstein(a, a[torch.randperm(20, generator=torch.Generator().manual_seed(0))]) == 0
    assert ab == pytest.approx(sliced_wasserstein(b, a), rel=1e-12) and ab > 0.1
    assert ac <= ab + bc and ab <= ac + bc and bc <= ab + ac
    assert sliced_wasserstein(7 * a + 2, 7 * b + 2) == pytest.approx(7 * ab, rel=1e-12)
    assert sliced_wasserstein(a.repeat(3, 1), b) == pytest.approx(ab, rel=1e-12)
    assert sliced_wasserstein(a, b, p=1) < ab < sliced_wasserstein(a, b, p=4)


def test_directions_come_from_the_seed() -> None:
    a, b = normal(20, 3, 18), normal(15, 3, 19)
    assert sliced_wasserstein(a, b, seed=1) == sliced_wasserstein(a, b, seed=1) != sliced_wasserstein(a, b, seed=2)


# maximum mean discrepancy


def test_discrepancy_against_brute_force() -> None:
    a, b, hs = normal(9, 3, 20), normal(7, 3, 21) + 0.5, (0.5, 2.0, 3.0)

    def k(p: list[float], q: list[float]) -> float:
        return sum(math.exp(-(math.dist(p, q) ** 2) / (2 * h**2)) for h in hs) / len(hs)

    def within(x: list[list[float]]) -> float:
        return sum(k(p, q) for i, p in enumerate(x) for j, q in enumerate(x) if i != j) / (len(x) * (len(x) - 1))

    x, y = a.tolist(), b.tolist()
    expected = within(x) + within(y) - 2 * sum(k(p, q) for p in x for q in y) / (len(x) * len(y))
    assert maximum_mean_discrepancy(a, b, bandwidths=hs) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_discrepancy_of_one_distribution_is_zero_on_average(n: int) -> None:
    """Over all splits of a set the three means are of the same pairs, so that they cancel exactly."""
    got = [maximum_mean_discrepancy(a, b) for a, b in splits(normal(7, 2, 22), n)]
    assert sum(got) / len(got) == pytest.approx(0, abs=1e-12)
    assert min(got) < 0 < max(got)


def test_discrepancy_is_unbiased_between_gaussians() -> None:
    """E k = (h²/(h² + s² + s'²))^(D/2)·exp(−‖m − m'‖²/2(h² + s² + s'²)) for draws of N(m, s²I) and N(m', s'²I)."""
    s, m, h, d = (1.0, 0.5), 1.2, 0.8, 2

    def mean(s: float, t: float, gap: float) -> float:
        wide = h**2 + s**2 + t**2
        return (h**2 / wide) ** (d / 2) * math.exp(-d * gap**2 / (2 * wide))

    expected = mean(s[0], s[0], 0) + mean(s[1], s[1], 0) - 2 * mean(*s, m)
    draws = [(s[0] * normal(8, d, 2 * i), s[1] * normal(5, d, 2 * i + 1) + m) for i in range(500)]
    assert_mean([tensor(maximum_mean_discrepancy(a, b, bandwidths=[h])) for a, b in draws], tensor(expected))


def test_discrepancy_of_distant_points_and_invariances() -> None:
    a, b = torch.zeros(3, 2, dtype=F64), torch.full((4, 2), 1e3, dtype=F64)
    assert maximum_mean_discrepancy(a, b) == pytest.approx(2, rel=1e-9)
    a, b = normal(20, 3, 23), 2 * normal(15, 3, 24)
    got = maximum_mean_discrepancy(a, b)
    assert got > 0.05 and got == pytest.approx(maximum_mean_discrepancy(b, a), rel=1e-9)
    assert maximum_mean_discrepancy(turned(a), turned(b)) == pytest.approx(got, rel=1e-9)
    hs = (0.25, 0.5, 1.0, 2.0, 4.0)
    assert maximum_mean_discrepancy(5 * a, 5 * b, bandwidths=[5 * h for h in hs]) == pytest.approx(got, rel=1e-9)
    parts = [maximum_mean_discrepancy(a, b, bandwidths=[h]) for h in hs]
    assert got == pytest.approx(sum(parts) / len(hs), rel=1e-9)


# variety of one set


def test_diversity_of_equal_steps() -> None:
    """Σ_{i<j} (j − i) = n(n − 1)(n + 1)/6, so 0 … n − 1 are (n + 1)/3 apart on average."""
    for n in (2, 5, 1500):
        assert diversity(torch.arange(float(n))[:, None]) == pytest.approx((n + 1) / 3, rel=1e-9)


def test_diversity_of_a_gaussian() -> None:
    """E|x − x'| = 2s/√π."""
    draws = [tensor(diversity(3 * normal(10, 1, seed))) for seed in range(400)]
    assert_mean(draws, tensor(2 * 3 / math.sqrt(math.pi)))


def test_diversity_is_invariant() -> None:
    x = normal(30, 4, 25)
    got = diversity(x)
    assert diversity(turned(x)) == pytest.approx(got, rel=1e-9)
    assert diversity(x + 1e6) == pytest.approx(got, rel=1e-7)
    assert diversity(7 * x) == pytest.approx(7 * got, rel=1e-9)
    assert diversity(torch.full((5, 3), 0.1)) == pytest.approx(0, abs=1e-7)


def test_vendi_of_two_points() -> None:
    """K/2 has the eigenvalues (1 ± c)/2 with c = exp(−r²/2h²)."""
    for r, h in ((0.5, 1.0), (2.0, 1.0), (2.0, 3.0)):
        c = math.exp(-(r**2) / (2 * h**2))
        entropy = -sum(v * math.log(v) for v in ((1 + c) / 2, (1 - c) / 2))
        assert vendi(column(0, r), bandwidth=h) == pytest.approx(math.exp(entropy), rel=1e-12)


def test_vendi_of_points_on_a_circle() -> None:
    """K is circulant: its eigenvalues are the discrete Fourier transform of its first row."""
    angle = torch.arange(11, dtype=F64) * 2 * math.pi / 11
    x = torch.stack([angle.cos(), angle.sin()], 1)
    row = torch.exp(-((x - x[0]) ** 2).sum(1) / (2 * 0.6**2)) / 11
    spectrum = torch.fft.fft(row).real
    expected = (-(spectrum * spectrum.log()).sum()).exp().item()
    assert vendi(x, bandwidth=0.6) == pytest.approx(expected, rel=1e-9) and 2 < expected < 10


def test_vendi_counts_what_is_different() -> None:
    """Copies in clusters of shares p count exp(−Σ p ln p): 1 if all are one, N if all are far apart."""
    assert vendi(torch.zeros(9, 3)) == pytest.approx(1, rel=1e-9)
    assert vendi(100 * torch.arange(9.0)[:, None]) == pytest.approx(9, rel=1e-9)
    x = 100 * column(0, 0, 0, 0, 1, 1, 2, 2)
    assert vendi(x) == pytest.approx(math.exp(0.5 * math.log(2) + 0.5 * math.log(4)), rel=1e-9)
    assert vendi(x, bandwidth=1e5) == pytest.approx(1, rel=1e-3)


def test_vendi_is_invariant() -> None:
    x = normal(30, 4, 26)
    got = vendi(x)
    assert 1 < got < 30
    assert vendi(turned(x)) == pytest.approx(got, rel=1e-9)
    assert vendi(x + 1e6) == pytest.approx(got, rel=1e-7)
    assert vendi(x.repeat(3, 1)) == pytest.approx(got, rel=1e-9)
    assert vendi(5 * x, bandwidth=5) == pytest.approx(got, rel=1e-9)


def test_mode_entropy_by_hand() -> None:
    means = column(0, 1, 10)
    assert mode_entropy(column(0.2, -5, 0.49), means) == 0
    assert mode_entropy(column(0, 1, 9), means) == pytest.approx(math.log(3), rel=1e-12)
    shares = (0.5, 0.25, 0.25)
    expected = -sum(p * math.log(p) for p in shares)
    assert mode_entropy(column(0, 0, 0.4, -1, 0.6, 5, 6, 50), means) == pytest.approx(expected, rel=1e-12)
    assert mode_entropy(column(0.5, 0), column(0, 1)) == 0  # halfway the first mode counts


def test_mode_entropy_is_invariant() -> None:
    x, means = normal(200, 3, 27), normal(6, 3, 28)
    got = mode_entropy(x, means)
    assert 0.5 < got <= math.log(6)
    assert mode_entropy(turned(x), turned(means)) == pytest.approx(got, rel=1e-12)
    assert mode_entropy(x.flip(0), means.flip(0)) == pytest.approx(got, rel=1e-12)
    far = torch.cat([means, torch.full((2, 3), 1e3, dtype=F64)])
    assert mode_entropy(x, far) == pytest.approx(got, rel=1e-12)  # modes that nobody is near


# all


@pytest.mark.parametrize("metric", [density_coverage, prdc])
def test_neighbourhoods_are_invariant(metric: Callable) -> None:
    a, b = normal(40, 3, 29), 0.8 * normal(30, 3, 30) + 0.4
    assert metric(turned(a), turned(b)) == metric(a, b) == metric(9 * a, 9 * b) == metric(a.flip(0), b.flip(0))


def figures(a: Tensor, b: Tensor) -> Tensor:
    four = list(prdc(a, b).values())
    two = [maximum_mean_discrepancy(a, b), sliced_wasserstein(a, b), mode_entropy(a, b)]
    return tensor(*four, *density_coverage(a, b), *two, diversity(a), vendi(a))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = normal(60, 3, 31), normal(45, 3, 32) + 0.5
    whole = figures(a, b)
    for size in ("_ROWS", "_FEW_ROWS", "_LINES"):
        monkeypatch.setattr(f"limbeck.evaluate.metrics.{size}", 7)
    close(figures(a, b), whole, 1e-9)


def test_figures_are_computed_in_double() -> None:
    """In float32 rounding would be 1e-4 here, of sets 1000 away from the origin."""
    a, b = (1000 + x.float() for x in (normal(60, 3, 33), normal(45, 3, 34)))
    close(figures(a, b), figures(a.double() - 1000, b.double() - 1000), 1e-8)


@pytest.mark.parametrize("metric", [*OF_TWO, *OF_ONE])
def test_bad_sets_are_refused(metric: Callable) -> None:
    good = normal(20, 4, 35)
    for bad in (normal(20, 4).log(), normal(20, 4)[:0], normal(20, 4)[0], normal(20, 5)):
        pairs = [(good, bad), (bad, good)] if metric in OF_TWO else [(bad,)] if bad.shape != (20, 5) else []
        for pair in pairs:
            with pytest.raises(BadSetting):
                metric(*pair)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: density_coverage(x, x, k=0),
        lambda x: density_coverage(x, x, k=len(x)),
        lambda x: prdc(x, x, k=0),
        lambda x: prdc(x, x, k=len(x)),
        lambda x: sliced_wasserstein(x, x, p=0.5),
        lambda x: sliced_wasserstein(x, x, p=math.inf),
        lambda x: sliced_wasserstein(x, x, p=math.nan),
        lambda x: sliced_wasserstein(x, x, projections=0),
        lambda x: maximum_mean_discrepancy(x, x, bandwidths=[]),
        lambda x: maximum_mean_discrepancy(x, x, bandwidths=[1.0, 0.0]),
        lambda x: maximum_mean_discrepancy(x[:1], x),
        lambda x: maximum_mean_discrepancy(x, x[:1]),
        lambda x: diversity(x[:1]),
        lambda x: vendi(x, bandwidth=-1.0),
        lambda x: vendi(x, bandwidth=math.nan),
    ],
)
def test_bad_settings_are_refused(call: Callable) -> None:
    with pytest.raises(BadSetting, match=r"(must be|must have)"):
        call(normal(6, 2, 36))


def test_density_needs_no_more_than_one_fake() -> None:
    assert density_coverage(normal(20, 2, 37), normal(1, 2, 38))[1] <= 1
    with pytest.raises(BadSetting, match="at least 6"):
        density_coverage(normal(5, 2, 37), normal(20, 2, 38))


@pytest.mark.parametrize("metric", [*OF_TWO, *OF_ONE])
def test_arguments_and_the_generator_are_left_alone(metric: Callable) -> None:
    sets = (normal(20, 4, 39), normal(30, 4, 40))[: 2 if metric in OF_TWO else 1]
    before, state = [x.clone() for x in sets], torch.get_rng_state()
    metric(*sets)
    assert all(torch.equal(x, y) for x, y in zip(sets, before, strict=True))
    assert torch.equal(state, torch.get_rng_state())


def test_all_are_exported() -> None:
    for metric in (*OF_TWO, *OF_ONE):
        assert getattr(evaluate, metric.__name__) is metric and metric.__name__ in evaluate.__all__
