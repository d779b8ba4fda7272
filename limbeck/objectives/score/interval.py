"""Interval and trajectory score matching: B is the teacher's own prediction earlier on the path that led to x_t."""

from dataclasses import dataclass, field

from torch import Tensor

from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.guidance import CFG, Guidance
from limbeck.engine.objective import Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Noised, Tick
from limbeck.errors import Incompatible, in_range
from limbeck.objectives.score.distillation import ScoreDistillation
from limbeck.objectives.score.noise import Inverted, Noise
from limbeck.objectives.score.parts import Part, Weight


@dataclass(frozen=True, kw_only=True)
class Midway(Part):
    """ε_T(x_μ, μ) between x_r and x_t, μ = r + (t − r)·√(1 − γ²) on the clock, x_μ one DDIM step from x_r.

    Args:
        gamma: γ; at 1 the point is x_r itself, near 0 it is x_t.
        guidance: on the teacher; none of the condition by default. Where it is that of `Inverted`, the pass at x_r is
            the one that inversion has made.

    Raises:
        BadSetting: γ outside [0, 1].
        Incompatible: samples that no path led to.

    Source: Dreamer XL, arXiv 2405.11252.

    >>> Midway().gamma
    1.0
    """

    gamma: float = 1.0
    guidance: Guidance | None = field(default_factory=lambda: CFG(scale=0.0))

    def __post_init__(self) -> None:
        in_range("gamma", self.gamma, 0, 1)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        cast.need("teacher", Denoiser, by=self)
        return ()

    def eps(self, tick: Tick, seen: Noised, guidance: Guidance | None) -> Tensor:
        here = self.point(tick, seen)
        return here.eps_of(tick.denoise("teacher", here, self.guidance))

    def point(self, tick: Tick, seen: Noised) -> Noised:
        """x_μ of these samples; x_r itself, to the bit, where γ = 1."""
        if (start := seen.via) is None:
            raise Incompatible("Midway", need="samples that a path led to", got="none", fit="noise=Inverted()")
        if self.gamma == 1:
            return start
        r, t = (seen.process.fraction(level) for level in (start.t, seen.t))
        mu = seen.process.at_fraction(r + (t - r) * (1 - self.gamma**2) ** 0.5)
        return start.moved(tick.denoise("teacher", start, self.guidance), mu, self)


@dataclass(frozen=True, kw_only=True)
class ISM(ScoreDistillation):
    """Interval score matching, g = σ/α·(ε_T(x_t, t) − ε_T(x_r, r; ∅)) on a path of DDIM inversion from x over x_r.

    The noise is no longer drawn, so that what a sample is pulled to does not change from tick to tick.

    Args: those of `ScoreDistillation`; LucidDreamer takes ``guidance=CFG(scale=7.5)`` and gaps of 0.1 down to 0.08.

    Source: Liang et al. 2023, arXiv 2311.11284, algorithm 1; σ/α is the weight of the released code.

    >>> import torch
    >>> from limbeck import GaussianMixture, Particles, distill
    >>> teacher = GaussianMixture(means=torch.ones(1, 2), std=0.5)
    >>> sorted(next(iter(distill(teacher, Particles(torch.zeros(8, 2)), ISM(), steps=1, batch=8))).losses)
    ['ism']
    """

    fake: Part = field(default_factory=Midway)
    noise: Noise = field(default_factory=Inverted)
    weight: Weight = field(default_factory=lambda: Weight(sigma=1.0, alpha=-1.0))


@dataclass(frozen=True, kw_only=True)
class TSM(ScoreDistillation):
    """Trajectory score matching, g = σ/α·(ε_T(x_t, t) − ε_T(x_μ, μ; ∅)): x_t and x_μ are both one step from x_r.

    Two paths from one point err alike, so that less of inversion's error is in the difference. With γ = 1 it is ISM.
    The released code misses x_μ where inversion's stride is below μ − r; this is the formula.

    Args: those of `ScoreDistillation`; Dreamer XL takes ``guidance=CFG(scale=7.5)`` and clips each pixel's gradient.

    Source: Miao et al. 2024, arXiv 2405.11252.

    >>> TSM().fake.gamma
    0.3
    """

    fake: Part = field(default_factory=lambda: Midway(gamma=0.3))
    noise: Noise = field(default_factory=Inverted)
    weight: Weight = field(default_factory=lambda: Weight(sigma=1.0, alpha=-1.0))
