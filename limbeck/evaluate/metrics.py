"""How far two sets of feature vectors are apart: pure functions of tensors [N, D] and [M, D]."""

import torch
from torch import Tensor

from limbeck.errors import BadSetting

_ROWS = 1024  # rows of a distance matrix that are in memory at once


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
    if k < 1:
        raise BadSetting(f"k must be at least 1, got {k}.")
    _check(real, fake, least=k + 1)
    return _covered(fake, real, k), _covered(real, fake, k)


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


def _covered(points: Tensor, manifold: Tensor, k: int) -> float:
    """The share of points inside at least one ball of the manifold."""
    radii = torch.cat([_distances(rows, manifold).kthvalue(k + 1, dim=1).values for rows in manifold.split(_ROWS)])
    inside = torch.cat([(_distances(rows, manifold) <= radii).any(1) for rows in points.split(_ROWS)])
    return inside.double().mean().item()


def _mean_distance(a: Tensor, b: Tensor) -> float:
    return sum(_distances(rows, b).sum().item() for rows in a.split(_ROWS)) / (len(a) * len(b))


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """‖a_i − b_j‖, [N, M], float64, over inner products, so that equal points are about 1e-8 apart."""
    return torch.cdist(a.double(), b.double(), compute_mode="use_mm_for_euclid_dist")


def _covariance(x: Tensor) -> Tensor:
    x = x - x.mean(0)
    return x.mT @ x / (len(x) - 1)


def _check(a: Tensor, b: Tensor, *, least: int) -> None:
    for x in (a, b):
        if x.dim() != 2 or len(x) < least:
            raise BadSetting(f"a set of features must be [N, D] with N at least {least}, got {list(x.shape)}.")
        if not x.isfinite().all():
            raise BadSetting("a set of features must be finite, got a NaN or an infinity.")
    if a.shape[1] != b.shape[1]:
        raise BadSetting(f"both sets must have features of one width, got {a.shape[1]} and {b.shape[1]}.")
