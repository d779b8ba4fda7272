"""Score distillation without a teacher's score: the difference of two scores is the slope of one log-ratio."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from limbeck.diffusion.guidance import Guidance
from limbeck.diffusion.process import like
from limbeck.diffusion.times import Karras, Times
from limbeck.engine.objective import Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Noised, Tick
from limbeck.objectives.adversarial import GAN
from limbeck.objectives.score.distillation import ScoreDistillation
from limbeck.objectives.score.divergence import check_tells_ratio
from limbeck.objectives.score.parts import Part, Weight, Zero


@dataclass(frozen=True, kw_only=True)
class LogRatio(Part):
    """−σ·∇ln r, r = p_t/q_t by a discriminator: what ε_T − ε_ψ is where both are perfect, so B is `Zero` beside it.

    Args:
        gan: whose discriminator gives ln r; its student's loss is not included. It must know the levels of g.

    Raises:
        BadSetting: a GAN whose optimum is not ln r.
        Incompatible: no real samples, or a denoiser that shows no features.

    Source: DiffRatio, arXiv 2502.08005, sec. 3.
    """

    gan: GAN = field(default_factory=lambda: GAN(on="own"))

    def __post_init__(self) -> None:
        check_tells_ratio(self.gan)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        self.gan.check(cast)
        return self.gan.discriminator(cast)

    def eps(self, tick: Tick, seen: Noised, guidance: Guidance | None) -> Tensor:
        x_t = seen.x_t.detach().requires_grad_()
        with torch.enable_grad():
            log_r = self.gan.logits(tick, replace(seen, x_t=x_t, key=(seen.key, "slope"))).sum()
        (slope,) = torch.autograd.grad(log_r, x_t)
        return -like(seen.process.sigma(seen.t), slope) * slope


@dataclass(frozen=True, kw_only=True)
class DiffRatio(ScoreDistillation):
    """DiffRatio: the diffused KL divergence, g = −w(t)·σ·∇ln r, with a time-conditioned classifier in place of scores.

    Neither a critic nor the teacher's score takes part: the teacher lends its weights to the student and its noise
    process. Another f-divergence is a ``shape=(ByRatio(divergence=JensenShannon(), gan=...),)`` on the same classifier.

    Args: those of `ScoreDistillation`; ``guidance`` has nothing to guide here. w = 1 by default, which makes g a
    difference of noises: slopes at high noise are a classifier's least certain ones.

    Source: Zhang, Chen et al. 2025, arXiv 2502.08005, sec. 3.

    >>> from limbeck import OneStep, Trained, distill
    >>> from limbeck.problems.networks import ResidualMLP
    >>> teacher = Trained(ResidualMLP(shape=(2,), width=16, blocks=1))
    >>> student = OneStep(teacher.clone(trainable=True), shape=(2,))
    >>> step = next(iter(distill(teacher, student, DiffRatio(), torch.randn(32, 2), steps=1, batch=8)))
    >>> sorted(step.losses)
    ['diffratio', 'discriminator']
    """

    real: Part = field(default_factory=LogRatio)
    fake: Part = field(default_factory=Zero)
    weight: Weight = field(default_factory=lambda: Weight(sigma=0.0))
    times: Times = field(default_factory=Karras)
