"""Stable score distillation: the terms of guided SDS, each where it helps, and its noise taken out exactly."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from limbeck.diffusion.guidance import CFG, perpendicular
from limbeck.diffusion.process import like
from limbeck.engine.objective import Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Noised, Tick
from limbeck.errors import in_range
from limbeck.objectives.score.distillation import ScoreDistillation
from limbeck.objectives.score.parts import Part, Teacher


def as_long_as(vector: Tensor, other: Tensor) -> Tensor:
    """‖h‖/‖e‖·e of vectors e and h [B, …]; zero where e is.

    >>> as_long_as(torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
    tensor([[0., 5.]])
    """
    own, wanted = (x.flatten(1).norm(dim=1) for x in (vector, other))
    return like(wanted / own.clamp_min(torch.finfo(own.dtype).tiny), vector) * vector


@dataclass(frozen=True, kw_only=True)
class StableScoreDistillation(ScoreDistillation):
    """g = w(t)·h above a level M and w(t)·‖h‖/‖e‖·e below it, h = ε_T(c) − ε_T(∅), e = ε_T(c) less its noise.

    Guided SDS is s·h + ε_T(∅) − ε: h leaves modes of the unconditional density, ε_T seeks modes and smooths, and −ε
    reduces variance. Far from the data h alone leads; near it e = ε_T(c) − κ·ε with κ = ⟨ε_T(c), ε⟩/‖ε‖² does, the
    shortest of all ε_T(c) − k·ε, at the length of h: no large s over-saturates. Samples of one number have no e.

    Args:
        at: M as a fraction of the process's clock; 0 is CSD.
        null: ε_T(∅).

    ``real`` is ε_T(c), ``fake`` the noise that is taken out; ``guidance`` has nothing to guide here. The others are
    those of `ScoreDistillation`.

    Raises:
        BadSetting: a level outside [0, 1].

    Source: Tang et al. 2023, arXiv 2312.09305; released code of third parties divides κ by ‖ε‖ instead.

    >>> from limbeck import GaussianMixture, Particles, distill
    >>> teacher = GaussianMixture(means=torch.eye(2), std=0.5, labels=torch.arange(2))
    >>> student = Particles(torch.zeros(8, 2), cond=torch.arange(8) % 2)
    >>> sorted(next(iter(distill(teacher, student, StableScoreDistillation(), steps=1, batch=8))).losses)
    ['stablescoredistillation']
    """

    real: Part = field(default_factory=lambda: Teacher(guidance=CFG(scale=1.0)))
    null: Part = field(default_factory=lambda: Teacher(guidance=CFG(scale=0.0)))
    at: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("at", self.at, 0, 1)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        return *self.null.terms(cast), *super().terms(cast)

    def gradient(self, tick: Tick, seen: Noised) -> Tensor:
        real, null, noise = (part.eps(tick, seen, self.guidance) for part in (self.real, self.null, self.fake))
        above = like(seen.process.fraction(seen.t) > self.at, real)
        h = real - null
        direction = above * h + (1 - above) * as_long_as(perpendicular(real, noise), h)
        return self.shaped(seen, real, real - direction, tick)
