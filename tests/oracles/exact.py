"""What the oracles are made of: quadrature, exact maps, small students, and the gradient that a run descends."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from limbeck import (
    EDM,
    SGD,
    VP,
    Denoiser,
    Draw,
    GaussianMixture,
    Objective,
    Process,
    RectifiedFlow,
    Rng,
    Student,
    Times,
    TrigFlow,
    distill,
    like,
)

F64 = torch.float64
PROCESSES = (VP(), EDM(), RectifiedFlow(), TrigFlow())

every_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
seeds = pytest.mark.parametrize("seed", range(3))


def tensor(*values: Any) -> Tensor:
    """Numbers in float64."""
    return torch.tensor(values, dtype=F64)


def levels(process: Process, n: int = 9, lo: float = 0.01, hi: float = 50.0) -> Tensor:
    """n noise levels whose ratios σ/α run from lo to hi."""
    return process.at_ratio(torch.logspace(np.log10(lo), np.log10(hi), n, dtype=F64))


def normal_nodes(dims: int, n: int = 4) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite nodes [n^dims, dims] and weights of N(0, I): exact for polynomials below degree 2n."""
    x, w = np.polynomial.hermite_e.hermegauss(n)
    points = torch.tensor(list(product(x, repeat=dims)), dtype=F64)
    weights = torch.tensor(list(product(w / w.sum(), repeat=dims)), dtype=F64).prod(1)
    return points, weights


def normal_grid(n: int = 161, reach: float = 9.0) -> tuple[Tensor, Tensor]:
    """The trapezoidal rule for N(0, 1), n nodes and weights: exponentially accurate for analytic integrands."""
    x = torch.linspace(-reach, reach, n, dtype=F64)
    return x, (-(x**2) / 2).exp() * (x[1] - x[0]) / (2 * np.pi) ** 0.5


def factors(k: int, d: int, rng: Rng) -> Tensor:
    """k lower triangular factors [k, d, d] of well-conditioned covariances."""
    return torch.tril(0.4 * rng.normal(k, d, d, dtype=F64), -1) + torch.diag_embed(0.3 + rng.uniform(k, d))


def mixture(
    seed: int, *, k: int = 3, d: int = 2, process: Process | None = None, classes: int | None = None, **more: Any
) -> GaussianMixture:
    """A random mixture with full covariances and uneven weights, class-conditional if wanted."""
    rng = Rng(("oracle", seed))
    labels = None if classes is None else torch.arange(k) % classes
    means, weights = 1.5 * rng.normal(k, d, dtype=F64), 0.2 + rng.uniform(k)
    return GaussianMixture(means=means, std=factors(k, d, rng), weights=weights, labels=labels, process=process, **more)


def covariance(teacher: GaussianMixture) -> Tensor:
    """Σ of a single Gaussian, [D, D]."""
    return teacher.factor[0] @ teacher.factor[0].mT


@dataclass(frozen=True)
class AtRatio(Times):
    """A single noise level σ/α."""

    ratio: float

    def at(self, u: Tensor, process: Process, progress: float = 0.0) -> Tensor:
        return process.at_ratio(torch.full_like(u, self.ratio))


class Affine(Student):
    """x = a + B·z with z ~ N(0, I): the student whose distribution is N(a, BBᵀ)."""

    def __init__(self, a: Tensor, b: Tensor):
        super().__init__()
        self.a, self.b = nn.Parameter(a.clone()), nn.Parameter(b.clone())

    def draw(self, n: int, cond: Any, rng: Rng) -> Draw:
        z = rng.normal(n, len(self.a), dtype=self.a.dtype)
        return Draw(self.a + z @ self.b.mT, cond, z)

    def denoiser(self, process: Process) -> GaussianMixture:
        """The exact denoiser of its distribution, to which a perfect critic converges."""
        return gaussian(self.a.detach(), self.b.detach(), process)


def gaussian(mean: Tensor, factor: Tensor, process: Process, **more: Any) -> GaussianMixture:
    """N(mean, factor·factorᵀ)."""
    return GaussianMixture(means=mean[None], std=factor[None], process=process, **more)


class FlowMap(Denoiser):
    """Where the ODE of N(μ, diag s²) leads: f(x_t, t) = μ + s·(x_t − αμ)/√(α²s² + σ²), its consistency map.

    Along the flow (x_t − αμ)/√(α²s² + σ²) stays, for that is the score's standard normal variable.
    """

    def __init__(self, mean: Tensor, std: Tensor, process: Process | None = None):
        super().__init__()
        self.process = process or EDM()
        self.mean, self.std = nn.Parameter(mean.clone()), nn.Parameter(std.clone())

    def denoise(self, x_t: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        alpha, sigma = like(self.process.alpha(t), x_t), like(self.process.sigma(t), x_t)
        return self.mean + self.std * (x_t - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2).sqrt()

    def teacher(self, **more: Any) -> GaussianMixture:
        """The Gaussian whose map this is."""
        return gaussian(self.mean.detach(), self.std.detach().diag(), self.process, **more)


def descended(
    objective: Objective,
    teacher: nn.Module | None,
    student: nn.Module,
    data: Any = None,
    *,
    batch: int,
    seed: int = 0,
    role: str = "student",
) -> dict[str, Tensor]:
    """The gradient by parameter name that one tick of a run descends: SGD with rate 1 moves by just that."""
    run = distill(teacher, student, objective, data, steps=1, batch=batch, optim=SGD(lr=1.0), seed=seed)
    params = run.cast.roles[role].params
    before = {name: p.clone() for name, p in params.items()}
    step = run.tick()
    assert not step.skipped
    return {name: before[name] - p for name, p in params.items()}


def assert_mean(draws: Sequence[Tensor] | Tensor, expected: Tensor, *, share: float = 0.1, beyond: float = 6) -> None:
    """The mean of independent draws is the expected value, within ``beyond`` standard errors of each entry.

    The errors must be below ``share`` of the expected value's norm, or the test would show nothing.
    """
    stacked = torch.stack(tuple(draws))
    error = stacked.std(0) / len(stacked) ** 0.5
    assert error.norm() < share * expected.norm(), (error, expected)
    assert ((stacked.mean(0) - expected).abs() <= beyond * error).all(), (stacked.mean(0), expected, error)


def gradient(value: Callable[..., Tensor], *at: Tensor) -> tuple[Tensor, ...]:
    """The gradient of a number by each of its arguments."""
    leaves = [x.detach().clone().requires_grad_() for x in at]
    return torch.autograd.grad(value(*leaves), leaves)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    """|actual − expected| ≤ tolerance·(1 + the largest |expected|), everywhere."""
    scale = 1 + expected.detach().abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)
