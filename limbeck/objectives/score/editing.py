"""Editing by score distillation: B is the teacher's prediction for a source, under the student's level and noise."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.guidance import Guidance
from limbeck.diffusion.process import Process
from limbeck.engine.objective import Term
from limbeck.engine.roles import Cast
from limbeck.engine.student import Student
from limbeck.engine.tick import Noised, Tick
from limbeck.errors import in_range
from limbeck.objectives.score.distillation import ScoreDistillation
from limbeck.objectives.score.parts import Part, Weight


@dataclass(frozen=True, kw_only=True)
class Sourced(Part):
    """ε_T(x̂_t, t; ŷ): what the teacher predicts for a source x̂ under its own condition, with the student's t and ε.

    The source is a frozen student beside the teacher, drawn by the random numbers of the student: particles, images
    and generators of one kind give rows that belong together.

    Args:
        who: the source's name among the teachers.
        guidance: in the place of the objective's.

    Raises:
        Incompatible: no such source, or one that draws no samples.

    Source: delta denoising score, arXiv 2304.07090.

    >>> Sourced().who
    'source'
    """

    who: str = "source"
    guidance: Guidance | None = None

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        cast.need("teacher", Denoiser, by=self)
        cast.need(self.who, Student, by=self)
        return ()

    def eps(self, tick: Tick, seen: Noised, guidance: Guidance | None) -> Tensor:
        there = self.noised(tick, seen)
        return there.eps_of(tick.denoise("teacher", there, self.guidance or guidance))

    @torch.no_grad()
    def noised(self, tick: Tick, seen: Noised) -> Noised:
        """The source's samples at the level and under the noise of the student's."""
        source, name = tick.cast.need(self.who, Student, by=self), ("draw", "student")
        with tick.seeded(name):
            draw = source.draw(tick.size, tick.batch.get("cond"), tick.rng(name))
        x_t = seen.process.add_noise(draw.x, seen.eps, seen.t)
        return replace(seen, x=draw.x, x_t=x_t, cond=draw.cond, key=(seen.key, self), source=draw, via=None)


@dataclass(frozen=True, kw_only=True)
class DDS(ScoreDistillation):
    """Delta denoising score, g = w(t)·(ε_T(x_t, t; y) − ε_T(x̂_t, t; ŷ)): what the source's own pull has not.

    The student starts as the source x̂ and is edited from ŷ to y: what SDS does to an image that is right already is
    the second prediction, and is taken away. Where x = x̂ and y = ŷ the gradient is zero to the bit.

    Args: those of `ScoreDistillation`; the authors take ``guidance=CFG(scale=7.5)``.

    Raises:
        Incompatible: no teacher named ``source`` that draws samples; see `Sourced`.

    Source: Hertz et al. 2023, arXiv 2304.07090, with w = 1.

    >>> from limbeck import GaussianMixture, Particles, distill
    >>> teacher = GaussianMixture(means=torch.eye(2), std=0.1, labels=torch.arange(2))
    >>> x, here, there = torch.eye(2)[:1], torch.tensor([0]), torch.tensor([1])
    >>> cast = {"teacher": teacher, "source": Particles(x, cond=here)}
    >>> sorted(next(iter(distill(cast, Particles(x, cond=there), DDS(), steps=1, batch=1))).losses)
    ['dds']
    """

    fake: Part = field(default_factory=Sourced)
    weight: Weight = field(default_factory=lambda: Weight(sigma=0.0))


@dataclass(frozen=True, kw_only=True)
class Posterior(Weight):
    """w(t) = √((λ_t/λ_r)² − 1) with λ = σ/α, one step of ``stride`` from t to r: that of posterior distillation.

    Args:
        stride: of the step, as a fraction of the process's clock.

    Raises:
        BadSetting: a stride outside (0, 1].

    >>> from limbeck.diffusion import RectifiedFlow
    >>> half = torch.tensor([0.5], dtype=torch.float64)
    >>> round(Posterior(stride=0.1).at(half, RectifiedFlow()).item(), 6)  # √((1/(0.4/0.6))² − 1)
    1.118034
    """

    stride: float = 0.001

    def __post_init__(self) -> None:
        in_range("stride", self.stride, 1e-6, 1)

    def at(self, t: Tensor, process: Process) -> Tensor:
        r = process.at_fraction((process.fraction(t) - self.stride).clamp_min(0))
        return ((process.ratio(t) / process.ratio(r)) ** 2 - 1).clamp_min(0).sqrt()


@dataclass(frozen=True, kw_only=True)
class PDS(DDS):
    """Posterior distillation sampling, g = z − ẑ: the stochastic latents of the student and of its source agree.

    z = (x_r − μ(x_t, x0_T))/s with q(x_r | x_t, x0) = N(μ, s²), and x_t, x_r of both under the same two noises. What
    is left of that is delta denoising under another weight, `Posterior`: with the posterior's own variance the noise of
    x_r cancels, and x − x̂ enters with x0_T − x̂0_T alone. The released code takes the variance of one step for two,
    which leaves a pull towards the source.

    Args: those of `DDS`; ``weight=Posterior(stride=...)`` says how far r is below t.

    Source: Koo et al. 2023, arXiv 2311.13831; that the weight is this one follows from the posterior.

    >>> PDS().weight
    Posterior(sigma=2.0, alpha=0.0, stride=0.001)
    """

    weight: Weight = field(default_factory=Posterior)
