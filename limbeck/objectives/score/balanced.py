"""Balanced score distillation: classifier and denoising gradients, by the weights at which they agree."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from limbeck.diffusion.guidance import CFG
from limbeck.diffusion.process import like
from limbeck.engine.objective import Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Noised, Tick
from limbeck.errors import in_range
from limbeck.objectives.score.distillation import ScoreDistillation
from limbeck.objectives.score.parts import Part, Teacher, Weight, Zero


def shortest(first: Tensor, second: Tensor) -> Tensor:
    """The shortest vector a·g₁ + (1 − a)·g₂ between two, with a = ⟨g₂ − g₁, g₂⟩/‖g₂ − g₁‖² kept in [0, 1].

    Its product with each of the two is at least its own square, so a step against it lowers both objectives.

    Args:
        first: g₁, [B, …].
        second: g₂, [B, …].

    Returns:
        One vector per example, [B, …].

    Source: Désidéri 2012, multiple-gradient descent; of two Sener & Koltun 2018, arXiv 1810.04650, algorithm 1.

    >>> shortest(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
    tensor([[1., 1.]])
    """
    gap = (second - first).flatten(1)
    share = (gap * second.flatten(1)).sum(1) / (gap**2).sum(1).clamp_min(torch.finfo(gap.dtype).tiny)
    return second + like(share.clamp(0, 1), first) * (first - second)


@dataclass(frozen=True, kw_only=True)
class BalancedScoreDistillation(ScoreDistillation):
    """g = w(t)·`shortest`(λ·(ε_T(c) − ε_T(∅)), ε_T(∅) − B): no condition is followed against the image, nor back.

    Where the two disagree they are balanced for each example; a fixed guidance would let one undo the other.

    Args:
        ratio: λ, of the classifier's gradient to the other; a larger one is followed less, for it must shrink more.
        null: ε_T(∅).

    ``fake`` is B, nothing as in the paper, or `Added`, with which the second gradient is that of SDS without the
    condition, without the noise of ε. ``guidance`` has nothing to guide here; the others are those of
    `ScoreDistillation`.

    Raises:
        BadSetting: a ratio below 0.

    Source: PlacidDreamer, Huang et al. 2024, arXiv 2407.13976; w = α is that of the released code.

    >>> from limbeck import GaussianMixture, Particles, distill
    >>> teacher, student = GaussianMixture(means=torch.ones(1, 2), std=0.5), Particles(torch.zeros(8, 2))
    >>> sorted(next(iter(distill(teacher, student, BalancedScoreDistillation(), steps=1, batch=8))).losses)
    ['balancedscoredistillation']
    """

    real: Part = field(default_factory=lambda: Teacher(guidance=CFG(scale=1.0)))
    fake: Part = field(default_factory=Zero)
    null: Part = field(default_factory=lambda: Teacher(guidance=CFG(scale=0.0)))
    weight: Weight = field(default_factory=lambda: Weight(sigma=0.0, alpha=1.0))
    ratio: float = 15.0

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("ratio", self.ratio, 0)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        return *self.null.terms(cast), *super().terms(cast)

    def gradient(self, tick: Tick, seen: Noised) -> Tensor:
        real, null, fake = (part.eps(tick, seen, self.guidance) for part in (self.real, self.null, self.fake))
        balanced = shortest(self.ratio * (real - null), null - fake)
        return self.shaped(seen, real, real - balanced, tick)
