"""The distillation term of ADD: samples are noised, denoised by the teacher, and drawn to the result."""

from dataclasses import dataclass, field

from limbeck.objectives.score.distillation import ScoreDistillation
from limbeck.objectives.score.parts import Weight


@dataclass(frozen=True, kw_only=True)
class Redenoised(ScoreDistillation):
    """½·c(t)·‖x − sg T(x_t, t)‖² with c(t) = α/√(α² + σ²): what the teacher makes of the student's noised sample.

    Since x − T = (σ/α)·(ε_T − ε) its gradient is c·(σ/α)·(ε_T − ε), and c = w·α/σ makes it score distillation of any
    weight w. ADD's exponential c = α, by which noisier levels count less, is w = σ.

    Args: those of `ScoreDistillation`.

    Source: Sauer et al. 2023, arXiv 2311.17042, eq. 2 and sec. 3.3.

    >>> import torch
    >>> from limbeck import GaussianMixture, Particles, distill
    >>> teacher = GaussianMixture(means=torch.ones(1, 2), std=0.5)
    >>> sorted(next(iter(distill(teacher, Particles(torch.zeros(8, 2)), Redenoised(), steps=1, batch=8))).losses)
    ['redenoised']
    """

    weight: Weight = field(default_factory=lambda: Weight(sigma=1.0))
