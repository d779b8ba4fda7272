"""The parts of g = w(t)·(A − B): predictions of ε that A and B may be, weights w, and what becomes of g."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from torch import Tensor

from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.guidance import Guidance
from limbeck.diffusion.process import Process, like
from limbeck.engine.objective import Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Noised, Tick
from limbeck.errors import in_range
from limbeck.objectives.score.critic import Critic


class Part(ABC):
    """A prediction of the noise ε in x_t = α·x + σ·ε. A subclass is a frozen keyword-only dataclass."""

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        """Losses of what it needs trained beside the student; raises `Incompatible` where it does not fit."""
        return ()

    @abstractmethod
    def eps(self, tick: Tick, seen: Noised, guidance: Guidance | None) -> Tensor:
        """ε without gradient, shape of x_t; ``guidance`` is the objective's, for parts without one of their own."""


@dataclass(frozen=True, kw_only=True)
class Teacher(Part):
    """What the teacher predicts, ε_T(x_t, t).

    Args:
        guidance: in the place of the objective's; ``CFG(scale=1)`` for none, ``CFG(scale=0)`` for no condition.
        who: which teacher, where there are several.

    >>> from limbeck import CFG
    >>> Teacher(guidance=CFG(scale=0.0))
    Teacher(guidance=CFG(scale=0.0), who='teacher')
    """

    guidance: Guidance | None = None
    who: str = "teacher"

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        cast.need(self.who, Denoiser, by=self)
        return ()

    def eps(self, tick: Tick, seen: Noised, guidance: Guidance | None) -> Tensor:
        return seen.eps_of(tick.denoise(self.who, seen, self.guidance or guidance))


@dataclass(frozen=True, kw_only=True)
class Fake(Part):
    """What the critic predicts, ε_ψ(x_t, t): the noise as the student's own distribution has it.

    Args:
        critic: settings of ψ, shared by all parts and objectives where they are equal.
        guidance: on the critic; CFG with a scale below 1 mixes in the prediction without condition.
    """

    critic: Critic = field(default_factory=Critic)
    guidance: Guidance | None = None

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        return (self.critic.join(cast),)

    def eps(self, tick: Tick, seen: Noised, guidance: Guidance | None) -> Tensor:
        return seen.eps_of(tick.denoise("critic", seen, self.guidance))


@dataclass(frozen=True, kw_only=True)
class Added(Part):
    """The noise that was added; where a path of DDIM steps led to x_t, the noise that it amounts to."""

    def eps(self, tick: Tick, seen: Noised, guidance: Guidance | None) -> Tensor:
        return seen.eps


@dataclass(frozen=True, kw_only=True)
class Zero(Part):
    """Nothing: for a B where A is already a difference."""

    def eps(self, tick: Tick, seen: Noised, guidance: Guidance | None) -> Tensor:
        return seen.eps.new_zeros(()).expand_as(seen.eps)


@dataclass(frozen=True, kw_only=True)
class Gated(Part):
    """One part at noisy levels and another at clean ones.

    Args:
        above: where t is beyond the fraction ``at`` of the process's clock.
        below: elsewhere.
        at: the fraction, from clean (0) to noise (1).
    """

    above: Part
    below: Part
    at: float = 0.2

    def __post_init__(self) -> None:
        in_range("at", self.at, 0, 1)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        return (*self.above.terms(cast), *self.below.terms(cast))

    def eps(self, tick: Tick, seen: Noised, guidance: Guidance | None) -> Tensor:
        high = like(seen.process.fraction(seen.t) > self.at, seen.x_t)
        return high * self.above.eps(tick, seen, guidance) + (1 - high) * self.below.eps(tick, seen, guidance)


@dataclass(frozen=True, kw_only=True)
class Weight:
    """w(t) = σ^sigma·α^alpha/(α² + σ²)^((sigma + alpha)/2), so that all processes agree at equal ratios σ/α.

    σ² (the default) is score distillation's own; σ/α makes g a difference of x0; σ⁰ a difference of ε.

    Args:
        sigma: exponent of σ.
        alpha: exponent of α.

    >>> import torch
    >>> from limbeck.diffusion import VP
    >>> half = VP().at_ratio(torch.ones(1, dtype=torch.float64))
    >>> [round(w.at(half, VP()).item(), 6) for w in (Weight(), Weight(sigma=1, alpha=-1), Weight(sigma=0))]
    [0.5, 1.0, 1.0]
    """

    sigma: float = 2.0
    alpha: float = 0.0

    def at(self, t: Tensor, process: Process) -> Tensor:
        """w(t), float64 [B]."""
        alpha, sigma = process.alpha(t), process.sigma(t)
        return sigma**self.sigma * alpha**self.alpha * (alpha**2 + sigma**2) ** (-(self.sigma + self.alpha) / 2)


@dataclass(frozen=True)
class Gradient:
    """g at some noised samples, with what it was made of.

    Args:
        g: what the samples descend, [B, …].
        seen: the noised samples.
        real: A, [B, …].
        fake: B, [B, …].
    """

    g: Tensor
    seen: Noised
    real: Tensor
    fake: Tensor


class Shape(ABC):
    """What becomes of g before it goes into the student. A subclass is a frozen keyword-only dataclass."""

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        """Losses of what it needs trained beside the student; raises `Incompatible` where it does not fit."""
        return ()

    @abstractmethod
    def __call__(self, gradient: Gradient, tick: Tick) -> Tensor:
        """Another g, [B, …]."""


@dataclass(frozen=True, kw_only=True)
class PerSample(Shape):
    """g/(n·D) with n = mean|x − x0_A| of each example: equal steps from every noise level.

    Args:
        floor: the least n.

    Source: DMD, arXiv 2311.18828, eq. 8.
    """

    floor: float = 1e-5

    def __call__(self, gradient: Gradient, tick: Tick) -> Tensor:
        seen, process = gradient.seen, gradient.seen.process
        real = process.convert(gradient.real, seen.x_t.detach(), seen.t, "eps", "x0")
        away = (seen.x.detach() - real).abs().flatten(1)
        return gradient.g / like(away.mean(1).clamp_min(self.floor) * away.shape[1], gradient.g)


@dataclass(frozen=True, kw_only=True)
class PixelClip(Shape):
    """Pixel-wise gradient clipping, g_ij·min(1, c/‖g_ij‖) over the channels of each pixel: directions stay.

    Args:
        limit: c, the largest norm of a pixel's gradient.
        norm: of the channels; 2, or infinity as in the released code.

    Source: Pan et al. 2023, arXiv 2310.12474, sec. 4.2.

    >>> import torch
    >>> PixelClip(limit=1.0).clip(torch.tensor([[[[3.0]], [[4.0]]]])).flatten().tolist()
    [0.6000000238418579, 0.800000011920929]
    """

    limit: float = 0.1
    norm: float = 2.0

    def __post_init__(self) -> None:
        in_range("limit", self.limit, 0)
        in_range("norm", self.norm, 1)

    def clip(self, g: Tensor) -> Tensor:
        """The clipped gradient, shape of g [B, C, …]."""
        norm = g.norm(p=self.norm, dim=1, keepdim=True)
        return g * (self.limit / norm.clamp_min(self.limit))

    def __call__(self, gradient: Gradient, tick: Tick) -> Tensor:
        return self.clip(gradient.g)
