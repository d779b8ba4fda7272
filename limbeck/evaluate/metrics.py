"""How far two sets of feature vectors are apart, and how varied one is: pure functions of tensors [N, D], [M, D]."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.errors import BadSetting, in_range
from limbeck.rng import Rng

_ROWS = 1024  # rows of a distance matrix that are in memory at once
_FEW_ROWS = 128  # where each entry is used several times: these stay in the cache
_LINES = 64  # directions whose projections are in memory at once


def frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of two Gaussians fitted to the sets, ‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2(Σ_a^½ Σ_b Σ_a^½)^½).

    In float64. The middle product is symmetric and positive, so its root needs two symmetric eigen-decompositions and
    is never complex. Covariances are the unbiased ones (N − 1); finite sets of one distribution are above 0.

    Args:
        a: features, [N, D], N ≥ 2.
        b: features, [M, D], M ≥ 2.

    Raises:
        BadSetting: if the sets are not matrices of equal width, are too small, or hold a NaN or infinity.

    Source: Dowson & Landau 1982, eq. 4; as a measure of generated images Heusel et al. 2017, arXiv 1706.08500, eq. 6.

    >>> a = torch.tensor([[-1.0], [1.0]])
    >>> round(frechet(a, 3 * a + 2), 6)  # (2 − 0)² + (3·√2 − √2)²
    12.0
    """
    _check(a, b, least=2)
    a, b = a.double(), b.double()
    cov_a, cov_b = _covariance(a), _covariance(b)
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.mT
    overlap = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    gap = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * overlap
    return max(gap.item(), 0.0)


def precision_recall(real: Tensor, fake: Tensor, k: int = 5) -> tuple[float, float]:
    """The share of fakes on the manifold of the reals, and of reals on the manifold of the fakes.

    A set's manifold is the union of balls around its points, each reaching to the point's k-th nearest neighbour in
    the set: precision = |{f : ∃r, ‖f − r‖ ≤ ρ_k(r)}| / M, and recall is the same with the sets exchanged.

    Args:
        real: features of the data, [N, D], N > k.
        fake: features of the samples, [M, D], M > k.
        k: which neighbour sets a ball's radius; the point itself does not count.

    Returns:
        (precision, recall), each in [0, 1].

    Raises:
        BadSetting: if the sets are not matrices of equal width, not larger than k, or hold a NaN or infinity.

    Source: Kynkäänniemi et al. 2019, arXiv 1904.06991, eq. 1 and 2.

    >>> real = torch.arange(10.0)[:, None]
    >>> precision_recall(real, real[:5], k=1)  # the balls around 0 … 4 reach 5 as well
    (1.0, 0.6)
    """
    figures = prdc(real, fake, k)
    return figures["precision"], figures["recall"]


def density_coverage(real: Tensor, fake: Tensor, k: int = 5) -> tuple[float, float]:
    """How densely the fakes sit where the reals are, and the share of reals that have a fake in their neighbourhood.

    With ρ_k(r) a real's distance to its k-th nearest other real: density = |{(r, f): ‖f − r‖ ≤ ρ_k(r)}| / (k·M) and
    coverage = |{r : ∃f, ‖f − r‖ ≤ ρ_k(r)}| / N. One far-off real has a wide ball, which makes any fake precise but adds
    little density, and only reals have balls, so scattered fakes cannot widen coverage. Of one distribution, density
    is 1 on average and coverage 1 − Π_{i=1…k} (N − i)/(N + M − i).

    Args:
        real: features of the data, [N, D], N > k.
        fake: features of the samples, [M, D].
        k: which neighbour sets a ball's radius; the point itself does not count.

    Returns:
        (density, coverage); coverage is in [0, 1], density may be above 1.

    Raises:
        BadSetting: if the sets are not matrices of equal width, are too small, or hold a NaN or infinity.

    Source: Naeem et al. 2020, arXiv 2002.09797, eq. 3 and 4; balls are closed, as in `precision_recall`.

    >>> density_coverage(torch.arange(10.0)[:, None], torch.tensor([[2.0], [2.5]]), k=1)  # 2 has 3 balls, 2.5 has 2
    (2.5, 0.3)
    """
    _check_neighbour(k)
    _check(real, fake, least=1)
    _check(real, real, least=k + 1)
    balls, fakes = _membership(fake, real, k)
    return balls.sum().item() / (k * len(fake)), _share(fakes)


def prdc(real: Tensor, fake: Tensor, k: int = 5) -> dict[str, float]:
    """`precision_recall` and `density_coverage` at the price of the first, under their four names.

    Args:
        real: features of the data, [N, D], N > k.
        fake: features of the samples, [M, D], M > k.
        k: which neighbour sets a ball's radius; the point itself does not count.

    Raises:
        BadSetting: if the sets are not matrices of equal width, not larger than k, or hold a NaN or infinity.

    Source: those of the two functions.

    >>> real = torch.arange(10.0)[:, None]
    >>> prdc(real, real[:5], k=1)
    {'precision': 1.0, 'recall': 0.6, 'density': 2.8, 'coverage': 0.6}
    """
    _check_neighbour(k)
    _check(real, fake, least=k + 1)
    balls, fakes = _membership(fake, real, k)
    recall = _share(_membership(real, fake, k)[0])
    density = balls.sum().item() / (k * len(fake))
    return {"precision": _share(balls), "recall": recall, "density": density, "coverage": _share(fakes)}


def energy_distance(a: Tensor, b: Tensor) -> float:
    """How far two distributions are apart, whatever their shape: 2·E‖x − y‖ − E‖x − x'‖ − E‖y − y'‖.

    In float64, x and x' independent draws from ``a``, y and y' from ``b``. Expectations are over all pairs, a point
    with itself included, so the distance is never negative, and 0 for equal sets only.

    Args:
        a: features, [N, D].
        b: features, [M, D].

    Raises:
        BadSetting: if the sets are not matrices of equal width, are empty, or hold a NaN or infinity.

    Source: Székely & Rizzo 2013, eq. 2 and 6.

    >>> energy_distance(torch.tensor([[0.0]]), torch.tensor([[3.0], [4.0]])) # 2·3.5 − 0 − ½
    6.5
    """
    _check(a, b, least=1)
    a, b = a.double(), b.double()
    return max(2 * _mean_distance(a, b) - _mean_distance(a, a) - _mean_distance(b, b), 0.0)


def maximum_mean_discrepancy(
    a: Tensor, b: Tensor, *, bandwidths: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0)
) -> float:
    """The unbiased estimate of MMD² = E k(x, x') + E k(y, y') − 2·E k(x, y) under a mixture of Gaussian kernels.

    k(x, y) is the mean over bandwidths h of exp(−‖x − y‖²/2h²), x and x' independent draws from ``a``, y and y' from
    ``b``. No point is paired with itself, so sets of one distribution get 0 on average, and often less than 0.

    Args:
        a: features, [N, D], N ≥ 2.
        b: features, [M, D], M ≥ 2.
        bandwidths: the h, in units of the features.

    Returns:
        MMD², below 2, or a little below 0.

    Raises:
        BadSetting: if the sets are not matrices of equal width, are too small, or hold a NaN or infinity; bandwidths
            that are not positive, or none.

    Source: Gretton et al. 2012, JMLR 13, lemma 6, eq. 3.

    >>> a, b = torch.zeros(2, 1), torch.full((2, 1), 2.0)
    >>> round(maximum_mean_discrepancy(a, b, bandwidths=[1.0]), 6)  # 1 + 1 − 2·e⁻²
    1.729329
    """
    if not bandwidths:
        raise BadSetting("bandwidths must be one or more positive numbers, got none.")
    for h in bandwidths:
        _check_positive("bandwidth", h)
    _check(a, b, least=2)
    n, m = len(a), len(b)
    within = [(_kernel_sum(x, x, bandwidths) - len(x)) / (len(x) * (len(x) - 1)) for x in (a, b)]
    return sum(within) - 2 * _kernel_sum(a, b, bandwidths) / (n * m)


def sliced_wasserstein(a: Tensor, b: Tensor, *, p: float = 2.0, projections: int = 256, seed: int = 0) -> float:
    """The Wasserstein distance of projections onto lines, (E_θ ∫₀¹ |Q_θ·a(u) − Q_θ·b(u)|ᵖ du)^(1/p).

    θ is uniform on the sphere and Q the quantile function of a projected set. On each line the integral is exact, also
    for sets of different sizes; the mean is over so many random directions, the same ones for the same seed.

    Args:
        a: features, [N, D].
        b: features, [M, D].
        p: order, at least 1.
        projections: number of directions.
        seed: decides the directions.

    Raises:
        BadSetting: if the sets are not matrices of equal width, are empty, or hold a NaN or infinity; p or the number
            of projections out of its range.

    Source: Bonneel et al. 2015, J. Math. Imaging Vis. 51; quantiles on a line: Peyré & Cuturi 2019, arXiv 1803.00567,
    remark 2.30.

    >>> a, b = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0]])
    >>> sliced_wasserstein(a, b, p=1), sliced_wasserstein(a, a + 3)
    (1.0, 3.0)
    """
    if not 1 <= p < math.inf:
        raise BadSetting(f"p must be a number of at least 1, got {p}.")
    in_range("projections", projections, 1)
    _check(a, b, least=1)
    lines = Rng((seed, "sliced")).normal(projections, a.shape[1], dtype=torch.float64).to(a.device)
    lines = lines / lines.norm(dim=1, keepdim=True)
    parts = [_transport(a.double() @ part.mT, b.double() @ part.mT, p).sum() for part in lines.split(_LINES)]
    return (sum(part.item() for part in parts) / projections) ** (1 / p)


def diversity(x: Tensor) -> float:
    """The mean distance of two different points of a set, Σ_{i≠j} ‖x_i − x_j‖ / (N(N − 1)).

    Args:
        x: features, [N, D], N ≥ 2.

    Raises:
        BadSetting: if the set is not a matrix, is too small, or holds a NaN or infinity.

    Source: Gini's mean difference, here in more than one dimension.

    >>> diversity(torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])) # (5 + 5 + 0)/3, with rounding
    3.33333...
    """
    _check(x, x, least=2)
    x = x.double()
    x = x - x.mean(0)  # inner products of points far from the origin would cancel
    return _mean_distance(x, x) * len(x) / (len(x) - 1)


def vendi(x: Tensor, *, bandwidth: float = 1.0) -> float:
    """How many really different points a set has, exp(−Σ λ_i ln λ_i) with λ the eigenvalues of K/N; from 1 to N.

    K_ij = exp(−‖x_i − x_j‖²/2h²). Takes O(N²) memory and O(N³) time.

    Args:
        x: features, [N, D].
        bandwidth: h, in units of the features: points much nearer than that are one, points much further are two.

    Raises:
        BadSetting: if the set is not a matrix, is empty, or holds a NaN or infinity; a bandwidth that is not positive.

    Source: Friedman & Dieng 2022, arXiv 2210.02410, definition 3.1.

    >>> round(vendi(torch.tensor([[0.0], [0.0], [100.0], [100.0]])), 6)
    2.0
    """
    _check_positive("bandwidth", bandwidth)
    _check(x, x, least=1)
    x = x.double()
    x = x - x.mean(0)
    kernel = (_distances(x, x) ** 2 / (-2 * bandwidth**2)).exp()
    spectrum = torch.linalg.eigvalsh(kernel / len(x)).clamp_min(0)
    return torch.special.entr(spectrum).sum().exp().item()


def mode_entropy(x: Tensor, means: Tensor) -> float:
    """The entropy −Σ p_k ln p_k in nats, p_k being the share of points whose nearest mode is the k-th; from 0 to ln K.

    It is 0 where all points are at one mode and ln K where all modes have equally many; it does not see how far from
    their modes points are.

    Args:
        x: points, [N, D].
        means: the modes, [K, D]; of equally near ones the first counts.

    Raises:
        BadSetting: if the sets are not matrices of equal width, are empty, or hold a NaN or infinity.

    Source: Shannon 1948, of the histogram over modes that mode counts go by, as in arXiv 1705.07761, sec. 4.

    >>> round(mode_entropy(torch.tensor([[0.1], [-0.2], [0.9], [1.3]]), torch.tensor([[0.0], [1.0], [5.0]])), 6) # ln 2
    0.693147
    """
    _check(x, means, least=1)
    nearest = torch.cat([_distances(rows, means).argmin(1) for rows in x.split(_ROWS)])
    return torch.special.entr(nearest.bincount().double() / len(x)).sum().item()


def nearest_distance(x: Tensor, reference: Tensor) -> Tensor:
    """Each point's distance to the nearest of a reference set, min_r ‖x_i − r‖, [N].

    Samples much nearer to the training set than held-out data are copies of it.

    Args:
        x: points of any shape, [N, …]; all but the first axis are flattened.
        reference: points of the same shape, [M, …].

    Raises:
        BadSetting: if the points differ in size, a set is empty, or one holds a NaN or infinity.

    Source: the data-copying test of Meehan et al. 2020, arXiv 2004.05675, sec. 3, rests on this distance.

    >>> nearest_distance(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0]]))
    tensor([0., 5.])
    """
    x, reference = x.flatten(1), reference.flatten(1)
    _check(x, reference, least=1)
    exact = "donot_use_mm_for_euclid_dist"  # a copy is 0 away, not 1e-3 as the shortcut over inner products has it
    return torch.cat([torch.cdist(rows, reference, compute_mode=exact).min(1).values for rows in x.split(_ROWS)])


def _membership(points: Tensor, manifold: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """In how many balls of the manifold each point is, [P], and how many points each ball holds, [len(manifold)]."""
    near = [_distances(rows, manifold).topk(k + 1, largest=False).values for rows in manifold.split(_ROWS)]
    radii = torch.cat(near)[:, -1]
    balls, held = [], torch.zeros(len(manifold), dtype=torch.long, device=manifold.device)
    for rows in points.split(_ROWS):
        inside = _distances(rows, manifold) <= radii
        balls.append(inside.sum(1))
        held += inside.sum(0)
    return torch.cat(balls), held


def _share(counts: Tensor) -> float:
    """The share of counts above 0."""
    return (counts > 0).double().mean().item()


def _transport(a: Tensor, b: Tensor, p: float) -> Tensor:
    """∫₀¹ |Q_a(u) − Q_b(u)|ᵖ du of each column of a [N, P] and b [M, P], [P]."""
    n, m = len(a), len(b)
    steps = [m * torch.arange(n, device=a.device), n * torch.arange(m, device=a.device)]
    cuts = torch.cat(steps).unique()  # where either quantile function jumps, counted in 1/(N·M)
    mass = cuts.diff(append=cuts.new_tensor([n * m])).double() / (n * m)
    return mass @ (a.sort(0).values[cuts // m] - b.sort(0).values[cuts // n]).abs() ** p


def _kernel_sum(a: Tensor, b: Tensor, bandwidths: Sequence[float]) -> float:
    """Σ_ij k(a_i, b_j), k being the mean over bandwidths h of exp(−‖x − y‖²/2h²)."""
    total = 0.0
    for rows in a.split(_FEW_ROWS):
        square = _distances(rows, b) ** 2
        total += sum(square.div(-2 * h**2).exp_().sum().item() for h in bandwidths)
    return total / len(bandwidths)


def _mean_distance(a: Tensor, b: Tensor) -> float:
    return sum(_distances(rows, b).sum().item() for rows in a.split(_ROWS)) / (len(a) * len(b))


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """‖a_i − b_j‖, [N, M], float64, over inner products, so that equal points are about 1e-8 apart."""
    return torch.cdist(a.double(), b.double(), compute_mode="use_mm_for_euclid_dist")


def _covariance(x: Tensor) -> Tensor:
    x = x - x.mean(0)
    return x.mT @ x / (len(x) - 1)


def _check_neighbour(k: int) -> None:
    if k < 1:
        raise BadSetting(f"k must be at least 1, got {k}.")


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise BadSetting(f"{name} must be a positive number, got {value}.")


def _check(a: Tensor, b: Tensor, *, least: int) -> None:
    for x in (a, b):
        if x.dim() != 2 or len(x) < least:
            raise BadSetting(f"a set of features must be [N, D] with N at least {least}, got {list(x.shape)}.")
        if not x.isfinite().all():
            raise BadSetting("a set of features must be finite, got a NaN or an infinity.")
    if a.shape[1] != b.shape[1]:
        raise BadSetting(f"both sets must have features of one width, got {a.shape[1]} and {b.shape[1]}.")
