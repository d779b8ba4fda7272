"""Noise processes x_t = α(t)·x0 + σ(t)·ε, and every conversion between x0, ε, v, flow and score."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Form = Literal["x0", "eps", "v", "flow", "score"]


def like(value: Tensor, x: Tensor) -> Tensor:
    """A per-example value [B] as [B, 1, …], in the dtype and on the device of x [B, …].

    Noise levels stay float64 until here: fp32 rounding before an exponential or a difference is lost for good.
    """
    return value.to(x).reshape(-1, *[1] * (x.dim() - 1))


class Process(ABC):
    """How data turns into noise: x_t = α(t)·x0 + σ(t)·ε, with t in [t_min, t_max], float64, shape [B].

    A subclass gives α, σ, their rates and the inverse of the ratio σ/α; the rest follows. Every form a network may
    predict is linear, value = a·x0 + b·ε:

    ===== ============= =============
    form  a             b
    ===== ============= =============
    x0    1             0
    eps   0             1
    v     −σ            α
    flow  dα/dt         dσ/dt
    score 0             −1/σ
    ===== ============= =============
    """

    t_min: float
    t_max: float

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal level α(t), [B]."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise level σ(t), [B]."""

    @abstractmethod
    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(dα/dt, dσ/dt), each [B]."""

    @abstractmethod
    def at_ratio(self, ratio: Tensor) -> Tensor:
        """The t at which σ(t)/α(t) equals the ratio, [B]: one noise level named alike in every process."""

    def at_fraction(self, u: Tensor) -> Tensor:
        """The t at a fraction u of the process's own clock, from clean (0) to noise (1), [B]; linear by default."""
        return (self.t_max * u).clamp_min(self.t_min)

    def fraction(self, t: Tensor) -> Tensor:
        """Where t is on the process's own clock, the inverse of `at_fraction`, [B]."""
        return t / self.t_max

    def ratio(self, t: Tensor) -> Tensor:
        """σ(t)/α(t), the noise level in units of the signal, [B]."""
        return self.sigma(t) / self.alpha(t)

    def begin(self, t: Tensor) -> Tensor:
        """The standard deviation of the noise that a sampler begins with at t, [B]: σ(t), as if E[x0] were 0."""
        return self.sigma(t)

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t = α(t)·x0 + σ(t)·ε, shape of x0."""
        return like(self.alpha(t), x0) * x0 + like(self.sigma(t), x0) * eps

    def coefficients(self, form: Form, t: Tensor) -> tuple[Tensor, Tensor]:
        """(a, b) of value = a·x0 + b·ε, each [B]."""
        one, zero = torch.ones_like(t), torch.zeros_like(t)
        match form:
            case "x0":
                return one, zero
            case "eps":
                return zero, one
            case "v":
                return -self.sigma(t), self.alpha(t)
            case "flow":
                return self.rates(t)
            case "score":
                return zero, -1 / self.sigma(t)

    def convert(self, value: Tensor, x_t: Tensor, t: Tensor, source: Form, target: Form) -> Tensor:
        """One form of a prediction as another; the pair (value, x_t) fixes x0 and ε.

        x0 = (b·x_t − σ·value) / (b·α − a·σ), ε = (α·value − a·x_t) / (b·α − a·σ).

        Args:
            value: the prediction, [B, …].
            x_t: the noised sample it belongs to, [B, …].
            t: noise level, [B].
            source: the form of ``value``: x0, eps, v, flow or score.
            target: the form wanted.

        >>> process, t = EDM(), torch.tensor([2.0], dtype=torch.float64)
        >>> process.convert(torch.tensor([[1.0]]), torch.tensor([[5.0]]), t, "x0", "eps")
        tensor([[2.]])
        """
        a, b = self.coefficients(source, t)
        alpha, sigma = self.alpha(t), self.sigma(t)
        det = b * alpha - a * sigma
        x0 = like(b / det, x_t) * x_t - like(sigma / det, x_t) * value
        if target == "x0":
            return x0
        eps = like(alpha / det, x_t) * value - like(a / det, x_t) * x_t
        a, b = self.coefficients(target, t)
        return like(a, x_t) * x0 + like(b, x_t) * eps


@dataclass(frozen=True)
class EDM(Process):
    """Variance exploding: α = 1, σ = t; its clock is the ρ = 7 grid (Karras et al. 2022, arXiv 2206.00364, eq. 1, 5).

    >>> EDM().at_ratio(torch.tensor([0.5]))
    tensor([0.5000])
    """

    t_min: float = 0.002
    t_max: float = 80.0

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.ones_like(t)

    def at_ratio(self, ratio: Tensor) -> Tensor:
        return ratio

    def at_fraction(self, u: Tensor) -> Tensor:
        a, b = self.t_min ** (1 / 7), self.t_max ** (1 / 7)
        return (a + u * (b - a)) ** 7

    def fraction(self, t: Tensor) -> Tensor:
        a, b = self.t_min ** (1 / 7), self.t_max ** (1 / 7)
        return (t ** (1 / 7) - a) / (b - a)


@dataclass(frozen=True)
class VP(Process):
    """Variance preserving: ln α = −t²(β₁ − β₀)/4 − tβ₀/2, σ² = 1 − α² (Song et al. 2021, arXiv 2011.13456, eq. 33).

    >>> p, t = VP(), torch.tensor([0.3], dtype=torch.float64)
    >>> round((p.alpha(t) ** 2 + p.sigma(t) ** 2).item(), 12), round(p.at_ratio(p.ratio(t)).item(), 12)
    (1.0, 0.3)
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def log_alpha(self, t: Tensor) -> Tensor:
        """ln α(t), [B]."""
        return -(t**2) * (self.beta_max - self.beta_min) / 4 - t * self.beta_min / 2

    def alpha(self, t: Tensor) -> Tensor:
        return self.log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        d_alpha = -self.alpha(t) * (t * (self.beta_max - self.beta_min) + self.beta_min) / 2
        return d_alpha, -self.alpha(t) * d_alpha / self.sigma(t)

    def at_ratio(self, ratio: Tensor) -> Tensor:
        minus_log_alpha, slope = torch.log1p(ratio**2) / 2, self.beta_max - self.beta_min
        return ((self.beta_min**2 + 4 * slope * minus_log_alpha).sqrt() - self.beta_min) / slope


@dataclass(frozen=True)
class RectifiedFlow(Process):
    """Straight lines: α = 1 − t, σ = t; the flow form is ε − x0 (Liu et al. 2022, arXiv 2209.03003, eq. 1).

    >>> p, t = RectifiedFlow(), torch.tensor([0.25], dtype=torch.float64)
    >>> p.convert(torch.tensor([[3.0]]), torch.tensor([[1.75]]), t, "flow", "x0")
    tensor([[1.]])
    """

    t_min: float = 1e-3
    t_max: float = 1.0

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)

    def at_ratio(self, ratio: Tensor) -> Tensor:
        return 1 / (1 + 1 / ratio)  # 1 at an infinite ratio, where r / (1 + r) is NaN


@dataclass(frozen=True)
class TrigFlow(Process):
    """A rotation: α = cos t, σ = σ_d·sin t, t in [0, π/2] (Lu & Song 2024, arXiv 2410.11081, eq. 7).

    >>> p, t = TrigFlow(), torch.tensor([0.7], dtype=torch.float64)
    >>> round(p.at_ratio(p.ratio(t)).item(), 12)
    0.7
    """

    sigma_data: float = 0.5
    t_min: float = 1e-3
    t_max: float = math.pi / 2

    def alpha(self, t: Tensor) -> Tensor:
        return t.cos()

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_data * t.sin()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -t.sin(), self.sigma_data * t.cos()

    def at_ratio(self, ratio: Tensor) -> Tensor:
        return torch.atan(ratio / self.sigma_data)
