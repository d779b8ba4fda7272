"""Consistency distillation sampling: the teacher at x_t against itself, one step of its ODE towards the data."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.guidance import Guidance
from limbeck.diffusion.times import Annealed, Times, Uniform
from limbeck.engine.objective import Term
from limbeck.engine.roles import Cast
from limbeck.engine.schedule import Linear, Schedule, value_at
from limbeck.engine.tick import Noised, Tick
from limbeck.objectives.score.distillation import ScoreDistillation
from limbeck.objectives.score.noise import Attached, Noise
from limbeck.objectives.score.parts import Part, Weight


@dataclass(frozen=True, kw_only=True)
class Stepped(Part):
    """ε_T(x_r, r) where one Euler step of the teacher's ODE leads from x_t, x_r = α_r·x0(x_t) + σ_r·ε_T(x_t).

    With z = x/α and the ratio λ = σ/α that is z_r = z_t + (λ_r − λ_t)·ε_T(x_t). Both predictions are guided alike.

    Args:
        to: r as a fraction of the process's clock, a number or a schedule; never noisier than t.
        guidance: in the place of the objective's.

    Source: Consistent3D, arXiv 2401.09050.

    >>> Stepped(to=0.1)
    Stepped(to=0.1, guidance=None)
    """

    to: float | Schedule = field(default_factory=lambda: Linear(first=0.7, last=0.02))
    guidance: Guidance | None = None

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        cast.need("teacher", Denoiser, by=self)
        return ()

    def eps(self, tick: Tick, seen: Noised, guidance: Guidance | None) -> Tensor:
        process, guidance = seen.process, self.guidance or guidance
        r = process.at_fraction(torch.full_like(seen.t, value_at(self.to, tick.progress)))
        there = seen.moved(tick.denoise("teacher", seen, guidance), torch.minimum(r, seen.t), self)
        return there.eps_of(tick.denoise("teacher", there, guidance))


@dataclass(frozen=True, kw_only=True)
class CDS(ScoreDistillation):
    """Consistency distillation sampling, g = w(t)·(ε_T(x_t, t) − ε_T(x_r, r)): noise that stays, one ODE step to r < t.

    The less noisy prediction leads the noisier one. Along a trajectory whose noise prediction stays g is zero, so that
    nothing pulls at a sample that is where its noise leads.

    Args: those of `ScoreDistillation`; Consistent3D takes ``guidance=CFG(scale=101)``, going down to 51.

    Source: Wu et al. 2024, arXiv 2401.09050, with w = 1 as in the released settings.

    >>> import torch
    >>> from limbeck import GaussianMixture, Particles, distill
    >>> teacher = GaussianMixture(means=torch.ones(1, 2), std=0.5)
    >>> sorted(next(iter(distill(teacher, Particles(torch.zeros(8, 2)), CDS(), steps=1, batch=8))).losses)
    ['cds']
    """

    fake: Part = field(default_factory=Stepped)
    noise: Noise = field(default_factory=Attached)
    weight: Weight = field(default_factory=lambda: Weight(sigma=0.0))
    times: Times = field(
        default_factory=lambda: Annealed(first=Uniform(lo=0.8, hi=1.0), last=Uniform(lo=0.12, hi=0.32))
    )
