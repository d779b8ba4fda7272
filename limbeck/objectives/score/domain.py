"""Domain score distillation: classifier and variational guidance, each with a weight of its own."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from limbeck.diffusion.guidance import CFG
from limbeck.engine.objective import Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Noised, Tick
from limbeck.errors import BadSetting, in_range
from limbeck.objectives.score.distillation import ScoreDistillation
from limbeck.objectives.score.parts import Added, Fake, Part, Teacher


@dataclass(frozen=True, kw_only=True)
class DomainScoreDistillation(ScoreDistillation):
    """g = w(t)·[a·(ε_T(c) − ε) + k·(ε_T(c) − ε_T(∅)) + v·(ε_T(c) − ε_ψ)]: SDS, CSD and VSD are its corners.

    With a = 0 it is VSD under guidance 1 + k/v, v times.

    Args:
        seeking: a, the weight of SDS: seeks a mode.
        classifier: k, the weight of CSD: pulls to the condition's domain.
        variational: v, the weight of VSD: pulls to the teacher's domain; without it no critic is trained.

    ``fake`` is ε_ψ, ``real`` is ε_T(c), and ``guidance`` has nothing to guide here; the others are those of
    `ScoreDistillation`.

    Raises:
        BadSetting: a weight below 0, or none above.

    Source: DreamPolish, Cheng et al. 2024, arXiv 2411.01602, which gives the two guidances separate weights;
    the form with a third, for SDS, is ours.

    >>> from limbeck import GaussianMixture, Particles, distill
    >>> teacher, student = GaussianMixture(means=torch.ones(1, 2), std=0.5), Particles(torch.zeros(8, 2))
    >>> sorted(next(iter(distill(teacher, student, DomainScoreDistillation(), steps=1, batch=8))).losses)
    ['critic', 'domainscoredistillation']
    """

    real: Part = field(default_factory=lambda: Teacher(guidance=CFG(scale=1.0)))
    fake: Part = field(default_factory=Fake)
    seeking: float = 0.0
    classifier: float = 1.0
    variational: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("seeking", "classifier", "variational"):
            in_range(name, getattr(self, name), 0)
        if not self.against:
            raise BadSetting("DomainScoreDistillation needs a weight above 0, got only zeros.")

    @property
    def against(self) -> Sequence[tuple[float, Part]]:
        """What ε_T(c) is compared with, by weight."""
        null = Teacher(guidance=CFG(scale=0.0))
        every = ((self.seeking, Added()), (self.classifier, null), (self.variational, self.fake))
        return [(weight, part) for weight, part in every if weight]

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        parts = (self.real, *(part for _, part in self.against), *self.shapes)
        joined = (term for part in parts for term in part.terms(cast))
        return *joined, Term("domainscoredistillation", "student", self.loss, every=self.critic_steps, of=self)

    def gradient(self, tick: Tick, seen: Noised) -> Tensor:
        real = self.real.eps(tick, seen, self.guidance)
        parts = [weight * (real - part.eps(tick, seen, self.guidance)) for weight, part in self.against]
        return self.shaped(seen, real, real - torch.stack(parts).sum(0), tick)
