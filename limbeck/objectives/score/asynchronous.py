"""Asynchronous score distillation: the teacher at a noisier time stands in for a critic."""

from dataclasses import dataclass, field

from torch import Tensor

from limbeck.diffusion.guidance import CFG, Guidance
from limbeck.engine.objective import Term
from limbeck.engine.roles import Cast
from limbeck.engine.schedule import Schedule, value_at
from limbeck.engine.tick import Noised, Tick
from limbeck.errors import in_range
from limbeck.objectives.score.distillation import ScoreDistillation
from limbeck.objectives.score.parts import Part, Teacher


@dataclass(frozen=True, kw_only=True)
class Shifted(Part):
    """A part at a noisier time under the same noise, ε(α'x + σ'ε, t') with t' = t + Δ, Δ ~ U[0, η·(t − t_min)].

    Times are fractions of the process's clock.

    Args:
        of: the part; a part that uses ``via`` has none here.
        share: η.
        start: t_min, the least time that is drawn; a number or a schedule.

    Raises:
        BadSetting: a share outside [0, 1].

    Source: ScaleDreamer, arXiv 2407.02040, sec. 3.2.

    >>> Shifted(share=0.2).of
    Teacher(guidance=CFG(scale=1.0), who='teacher')
    """

    of: Part = field(default_factory=lambda: Teacher(guidance=CFG(scale=1.0)))
    share: float = 0.1
    start: float | Schedule = 0.02

    def __post_init__(self) -> None:
        in_range("share", self.share, 0, 1)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        return self.of.terms(cast)

    def eps(self, tick: Tick, seen: Noised, guidance: Guidance | None) -> Tensor:
        return self.of.eps(tick, seen.at(self.later(tick, seen), self), guidance)

    def later(self, tick: Tick, seen: Noised) -> Tensor:
        """t' of each example, float64 [B]; t itself, to the bit, where Δ = 0."""
        clock, u = seen.process.fraction(seen.t), tick.rng(("shifted", self, seen.key)).uniform(len(seen.t))
        ahead = (self.share * u * (clock - value_at(self.start, tick.progress))).clamp_min(0)
        t = seen.process.at_fraction((clock + ahead).clamp_max(1))
        return seen.t.where(ahead == 0, t)


@dataclass(frozen=True, kw_only=True)
class ASD(ScoreDistillation):
    """Asynchronous score distillation, g = w(t)·(ε_T(x_t, t) − ε_T(x_t', t')) at a noisier t' under the same noise.

    A critic would predict the noise better than the teacher does, and so does the teacher itself at a noisier time: no
    critic is trained. Only the first prediction is guided. At t' = t it is CSD, s − 1 times, under guidance s.

    Args: those of `ScoreDistillation`; ScaleDreamer takes ``guidance=CFG(scale=7.5)``.

    Source: Ma et al. 2024, arXiv 2407.02040, eq. 8.

    >>> import torch
    >>> from limbeck import CFG, GaussianMixture, Particles, distill
    >>> teacher = GaussianMixture(means=torch.ones(1, 2), std=0.5)
    >>> run = distill(teacher, Particles(torch.zeros(8, 2)), ASD(guidance=CFG(scale=2.0)), steps=1, batch=8)
    >>> sorted(next(iter(run)).losses)
    ['asd']
    """

    fake: Part = field(default_factory=Shifted)
