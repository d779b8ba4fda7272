"""What divergences are checked with: discriminators at their optimum, and students on the line and in space."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck import GAN, GaussianMixture, Noised, Rng, Term, Tick
from tests.oracles.exact import F64, factors, gradient, normal_grid
from tests.oracles.test_score_distillation import Line


@dataclass(frozen=True, kw_only=True)
class Known(GAN):
    """A discriminator at its optimum, ln p_t − ln q_t of two exact denoisers.

    Args:
        off: (c, d): it is off by c + d·ln t.
        broken: its first logit is no number.
    """

    p: Any
    q: Any
    off: tuple[float, float] = (0.0, 0.0)
    broken: bool = False

    def check(self, cast: Any) -> None:
        """It needs no data."""

    def discriminator(self, cast: Any) -> tuple[Term, ...]:
        return ()

    def logits(self, tick: Tick, seen: Noised) -> Tensor:
        off = self.off[0] + self.off[1] * seen.t.log()
        value = self.p.log_prob(seen.x_t, seen.t) - self.q.log_prob(seen.x_t, seen.t) + off
        return torch.where(torch.arange(len(value)) == 0, torch.nan, value) if self.broken else value


Loss = Callable[[Noised, Tensor, Tensor], Tensor]
"""(noised samples, T, ψ) → [B]."""


class OnLine(Line):
    """A mixture student on the line against a mixture teacher; every integral is on a grid."""

    nodes, reach = 241, 13.0

    @property
    def gan(self) -> Known:
        """The optimal discriminator of where the student is."""
        return Known(p=self.teacher, q=self.critic(self.m, self.s))

    def seen(self, loss: Loss) -> Callable[[Tensor, Tensor], Tensor]:
        """(m, s) ↦ E[loss(samples, T, ψ)] over components, z and ε, with ψ at its place."""
        (z, wz), (eps, we) = (normal_grid(self.nodes, self.reach) for _ in range(2))
        frozen = self.critic(self.m, self.s)

        def value(m: Tensor, s: Tensor) -> Tensor:
            x = (m[:, None, None] + s[:, None, None] * z[:, None]).expand(-1, -1, len(eps)).reshape(-1, 1)
            weights = (self.w[:, None, None] * wz[:, None] * we).reshape(-1)
            noise = eps.expand(len(self.m), len(z), -1).reshape(-1, 1)
            t = torch.full((len(x),), self.ratio, dtype=F64)
            seen = Noised(x, x + self.ratio * noise, t, noise, None, self.teacher.process)
            return weights @ loss(seen, self.teacher.denoise(seen.x_t, t), frozen.denoise(seen.x_t, t))

        return value

    def moved(self, loss: Loss) -> Tensor:
        """The expected gradient of a loss by (m, s)."""
        return torch.cat(gradient(self.seen(loss), self.m, self.s))

    def wanted(self, integrand: Callable[..., Tensor]) -> Tensor:
        """The gradient by (m, s) of ∫ q_t·integrand(x, t, critic)."""
        return torch.cat(gradient(self.over_density(integrand), self.m, self.s))


class OnNarrowLine(OnLine):
    """The same of single Gaussians, on a coarser grid that is still exact: for integrals over many levels."""

    nodes, reach = 81, 9.0

    def __init__(self, seed: int, ratio: float):
        one = torch.ones(1, 1, 1, dtype=F64)
        self.teacher = GaussianMixture(means=0.3 * one[0] + 0.2 * seed, std=0.7 * one)
        self.start = GaussianMixture(means=-0.1 * one[0], std=0.9 * one)
        self.m, self.s = self.start.means[:, 0].detach(), self.start.factor[:, 0, 0].detach()
        self.w, self.ratio = one[0, 0], ratio


class InSpace:
    """A Gaussian student x = a + Bz in D dimensions near a Gaussian teacher, at one level, by samples."""

    def __init__(self, seed: int, d: int, ratio: float):
        rng = Rng(("space", seed))
        self.a, self.b, self.ratio = 0.2 * rng.normal(d, dtype=F64), factors(1, d, rng)[0], ratio
        mean, factor = self.a + 0.15 * rng.normal(d, dtype=F64), self.b * (1 + 0.1 * rng.normal(d, d, dtype=F64))
        self.teacher = GaussianMixture(means=mean[None], std=factor[None])

    def critic(self, a: Tensor, b: Tensor) -> GaussianMixture:
        """The exact denoiser of the student, differentiable by (a, b)."""
        critic = GaussianMixture(means=a.detach()[None], std=b.detach()[None])
        for name, value in (("means", a[None]), ("factor", b[None])):
            delattr(critic, name)
            setattr(critic, name, value)
        return critic

    @property
    def gan(self) -> Known:
        """The optimal discriminator of where the student is."""
        return Known(p=self.teacher, q=self.critic(self.a, self.b))

    def samples(self, a: Tensor, b: Tensor, seed: int, n: int) -> Noised:
        """n samples as functions of (a, b), evenly spread (Sobol) and scrambled by the seed."""
        sobol = torch.quasirandom.SobolEngine(2 * len(a), scramble=True, seed=seed)
        z, eps = torch.special.ndtri(sobol.draw(n, dtype=F64).clamp(1e-12, 1 - 1e-12)).chunk(2, 1)
        x, t = a + z @ b.mT, torch.full((n,), self.ratio, dtype=F64)
        return Noised(x, x + self.ratio * eps, t, eps, None, self.teacher.process)

    def gradient(self, value: Callable[..., Tensor], seed: int, n: int = 2048) -> Tensor:
        """The gradient by (a, b) of a mean over samples; value(samples, critic) gets a critic that follows (a, b)."""

        def mean(a: Tensor, b: Tensor) -> Tensor:
            return value(self.samples(a, b, seed, n), self.critic(a, b)).mean()

        return torch.cat([g.flatten() for g in gradient(mean, self.a, self.b)])

    def assert_descends(self, loss: Loss, value: Callable[..., Tensor], factor: float, n: int = 2048) -> None:
        """The mean gradient of a loss is a factor times that of a mean over samples, on the same samples.

        Both have errors, but common ones cancel: the difference of the two is zero within six standard errors, and
        known to 2 % of the gradient.
        """
        frozen = self.critic(self.a, self.b)

        def losses(seen: Noised, _: GaussianMixture) -> Tensor:
            return loss(seen, self.teacher.denoise(seen.x_t, seen.t), frozen.denoise(seen.x_t, seen.t))

        pairs = [(self.gradient(losses, k, n), factor * self.gradient(value, k, n)) for k in range(16)]
        gaps, wanted = torch.stack([a - b for a, b in pairs]), torch.stack([b for _, b in pairs]).mean(0)
        error = gaps.std(0) / len(gaps) ** 0.5
        assert error.norm() < 0.02 * wanted.norm(), (error.norm(), wanted.norm())
        assert (gaps.mean(0).abs() <= 6 * error + 1e-12).all(), (gaps.mean(0) / error).abs().max()
