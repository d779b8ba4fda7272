"""Score distillation: g = w(t)·(A − B), descended without passing through a denoiser."""

from dataclasses import dataclass, field

from torch import Tensor

from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.guidance import CFG, Guidance
from limbeck.diffusion.process import like
from limbeck.diffusion.times import Times, Uniform
from limbeck.engine.objective import Loss, Objective, Term
from limbeck.engine.roles import Cast
from limbeck.engine.student import Student
from limbeck.engine.tick import Noised, Tick
from limbeck.errors import in_range
from limbeck.objectives.score.noise import Fresh, Noise
from limbeck.objectives.score.parts import Added, Fake, Gradient, Part, Shape, Teacher, Weight


def along(x: Tensor, gradient: Tensor) -> Tensor:
    """½‖g‖² with the gradient g by x: ½‖x − sg(x − g)‖² without its cancellation, summed over each example, [B].

    >>> import torch
    >>> x = torch.ones(2, 3, requires_grad=True)
    >>> along(x, torch.full((2, 3), 0.5)).sum().backward()
    >>> x.grad[0]
    tensor([0.5000, 0.5000, 0.5000])
    """
    g = gradient.detach()
    return (g * (x - x.detach()) + g**2 / 2).flatten(1).sum(1)


@dataclass(frozen=True, kw_only=True)
class ScoreDistillation(Objective):
    """The normal form of the family: the student's samples descend g = shape(w(t)·(A − B)).

    A and B are predictions of the noise at x_t. What passes through a denoiser is never differentiated.

    Args:
        real: A, what the student should be like.
        fake: B, what it is like.
        weight: w.
        times: noise levels.
        noise: how samples become x_t.
        guidance: on the teacher, wherever a part asks it and has none of its own.
        shape: what becomes of g, in order: normalised, clipped.
        critic_steps: ticks to one step of the student; whatever A and B train learns every tick.

    Raises:
        Incompatible: a teacher that is no `Denoiser`, a student that draws no samples or does not fit a part.

    Source: the common core of DreamFusion, arXiv 2209.14988, eq. 3, and ProlificDreamer, arXiv 2305.16213, eq. 9.

    >>> from limbeck import CFG, Teacher
    >>> csd = ScoreDistillation(real=Teacher(guidance=CFG(scale=1.0)), fake=Teacher(guidance=CFG(scale=0.0)))
    """

    real: Part = field(default_factory=Teacher)
    fake: Part = field(default_factory=Added)
    weight: Weight = field(default_factory=Weight)
    times: Times = field(default_factory=Uniform)
    noise: Noise = field(default_factory=Fresh)
    guidance: Guidance | None = None
    shape: tuple[Shape, ...] = ()
    critic_steps: int = 1

    def __post_init__(self) -> None:
        in_range("critic_steps", self.critic_steps, 1)

    def check(self, cast: Cast) -> None:
        cast.need("teacher", Denoiser, by=self)
        cast.need("student", Student, by=self)
        self.noise.check(cast)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        joined = (term for part in (self.real, self.fake, *self.shapes) for term in part.terms(cast))
        name = type(self).__name__.lower()
        return *joined, Term(name, "student", self.loss, every=self.critic_steps, of=self)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """All that becomes of g, in order; a subclass may add to ``shape``."""
        return self.shape

    def loss(self, tick: Tick) -> Loss:
        """The student's loss, `along` g."""
        seen = self.noise.see(tick, self.times)
        return Loss(along(seen.x, self.gradient(tick, seen)))

    def gradient(self, tick: Tick, seen: Noised) -> Tensor:
        """g at these noised samples, [B, …]."""
        real, fake = (part.eps(tick, seen, self.guidance) for part in (self.real, self.fake))
        return self.shaped(seen, real, fake, tick)

    def shaped(self, seen: Noised, real: Tensor, fake: Tensor, tick: Tick) -> Tensor:
        """g of two predictions of ε, [B, …]."""
        g = like(self.weight.at(seen.t, seen.process), seen.x) * (real - fake)
        for shape in self.shapes:
            g = shape(Gradient(g, seen, real, fake), tick)
        return g


@dataclass(frozen=True, kw_only=True)
class SDS(ScoreDistillation):
    """Score distillation sampling, g = w(t)·(ε_T(x_t) − ε): seeks a mode of the teacher.

    Args: those of `ScoreDistillation`; DreamFusion takes ``guidance=CFG(scale=100)``.

    Source: Poole et al. 2022, arXiv 2209.14988, eq. 3.

    >>> import torch
    >>> from limbeck import GaussianMixture, Particles, distill
    >>> teacher = GaussianMixture(means=torch.ones(1, 2), std=0.5)
    >>> step = next(iter(distill(teacher, Particles(torch.zeros(8, 2)), SDS(), steps=1, batch=8)))
    >>> sorted(step.losses)
    ['sds']
    """


@dataclass(frozen=True, kw_only=True)
class VSD(ScoreDistillation):
    """Variational score distillation, g = w(t)·(ε_T(x_t) − ε_ψ(x_t)): matches the teacher's distribution.

    Args: those of `ScoreDistillation`; ProlificDreamer takes ``guidance=CFG(scale=7.5)``, on the teacher only.

    Source: Wang et al. 2023, arXiv 2305.16213, eq. 9; on one-step generators SwiftBrush, arXiv 2312.05239.

    >>> import torch
    >>> from limbeck import GaussianMixture, Particles, distill
    >>> teacher = GaussianMixture(means=torch.ones(1, 2), std=0.5)
    >>> step = next(iter(distill(teacher, Particles(torch.zeros(8, 2)), VSD(), steps=1, batch=8)))
    >>> sorted(step.losses)
    ['critic', 'vsd']
    """

    fake: Part = field(default_factory=Fake)


@dataclass(frozen=True, kw_only=True)
class CSD(ScoreDistillation):
    """Classifier score distillation, g = w(t)·(ε_T(x_t; c) − ε_T(x_t; ∅)): the condition alone pulls.

    It is SDS under guidance s over s, as s → ∞.

    Args: those of `ScoreDistillation`; ``guidance`` has nothing to guide here.

    Source: Yu et al. 2023, arXiv 2310.19415, eq. 7.

    >>> CSD().fake
    Teacher(guidance=CFG(scale=0.0), who='teacher')
    """

    real: Part = field(default_factory=lambda: Teacher(guidance=CFG(scale=1.0)))
    fake: Part = field(default_factory=lambda: Teacher(guidance=CFG(scale=0.0)))
