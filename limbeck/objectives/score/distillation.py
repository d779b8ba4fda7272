"""Score distillation: g = w(t)·(A − B), descended without passing through the denoiser."""

from dataclasses import dataclass, field

from torch import Tensor

from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.guidance import Guidance
from limbeck.diffusion.process import Process, like
from limbeck.diffusion.times import Times, Uniform
from limbeck.engine.objective import Loss, Objective, Term
from limbeck.engine.roles import Cast
from limbeck.engine.student import Student
from limbeck.engine.tick import Tick
from limbeck.objectives.score.critic import Critical


def along(x: Tensor, gradient: Tensor) -> Tensor:
    """The loss ⟨sg(g), x⟩ whose gradient by x is g, summed over each example, [B].

    >>> import torch
    >>> x = torch.ones(2, 3, requires_grad=True)
    >>> along(x, torch.full((2, 3), 0.5)).sum().backward()
    >>> x.grad[0]
    tensor([0.5000, 0.5000, 0.5000])
    """
    return (gradient.detach() * x).flatten(1).sum(1)


def score_difference(real: Tensor, fake: Tensor, t: Tensor, process: Process) -> Tensor:
    """g = w·(ε_real − ε_fake) with w = σ²/(α² + σ²), from two predictions of x0, shape of x0.

    Since ε_real − ε_fake = (α/σ)·(x0_fake − x0_real), g = ασ/(α² + σ²)·(x0_fake − x0_real): in a variance-preserving
    process w = σ², and every other process gives the same g at the same ratio σ/α.

    Args:
        real: x0 by the teacher, [B, …].
        fake: x0 by the critic, or the clean sample itself for SDS, [B, …].
        t: noise levels, [B].
        process: the noise process.

    Source: DreamFusion, arXiv 2209.14988, eq. 3; ProlificDreamer, arXiv 2305.16213, eq. 9.

    >>> import torch
    >>> from limbeck.diffusion import RectifiedFlow
    >>> t = torch.tensor([0.5], dtype=torch.float64)
    >>> score_difference(torch.zeros(1, 1), torch.ones(1, 1), t, RectifiedFlow())
    tensor([[0.5000]])
    """
    alpha, sigma = process.alpha(t), process.sigma(t)
    return like(alpha * sigma / (alpha**2 + sigma**2), real) * (fake - real)


@dataclass(frozen=True, kw_only=True)
class SDS(Objective):
    """Score distillation sampling, g = w(t)·(ε_T(x_t) − ε): seeks a mode of the teacher.

    Args:
        times: noise levels.
        guidance: on the teacher; DreamFusion takes ``CFG(scale=100)``.

    Raises:
        Incompatible: a teacher that is no `Denoiser`, a student that draws no samples.

    Source: Poole et al. 2022, arXiv 2209.14988, eq. 3.

    >>> import torch
    >>> from limbeck import GaussianMixture, Particles, distill
    >>> teacher = GaussianMixture(means=torch.ones(1, 2), std=0.5)
    >>> step = next(iter(distill(teacher, Particles(torch.zeros(8, 2)), SDS(), steps=1, batch=8)))
    >>> sorted(step.losses)
    ['sds']
    """

    times: Times = field(default_factory=Uniform)
    guidance: Guidance | None = None

    def check(self, cast: Cast) -> None:
        cast.need("teacher", Denoiser, by=self)
        cast.need("student", Student, by=self)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        def loss(tick: Tick) -> Loss:
            seen = tick.noised(self.times)
            real = tick.denoise("teacher", seen, self.guidance)
            return Loss(along(seen.x, score_difference(real, seen.x, seen.t, seen.process)))

        return (Term("sds", "student", loss, of=self),)


@dataclass(frozen=True, kw_only=True)
class VSD(Critical):
    """Variational score distillation, g = w(t)·(ε_T(x_t) − ε_ψ(x_t)): matches the teacher's distribution.

    Args:
        critic: ε_ψ, learned beside the student.
        times: noise levels.
        guidance: on the teacher only; ProlificDreamer takes ``CFG(scale=7.5)``.
        critic_steps: steps of the critic to one of the student.

    Raises:
        Incompatible: a teacher that is no `Denoiser`, a student that draws no samples.

    Source: Wang et al. 2023, arXiv 2305.16213, eq. 9; on one-step generators SwiftBrush, arXiv 2312.05239.

    >>> import torch
    >>> from limbeck import GaussianMixture, Particles, distill
    >>> teacher = GaussianMixture(means=torch.ones(1, 2), std=0.5)
    >>> step = next(iter(distill(teacher, Particles(torch.zeros(8, 2)), VSD(), steps=1, batch=8)))
    >>> sorted(step.losses)
    ['critic', 'vsd']
    """

    def loss(self, tick: Tick) -> Loss:
        seen = tick.noised(self.times)
        real, fake = tick.denoise("teacher", seen, self.guidance), tick.denoise("critic", seen)
        return Loss(along(seen.x, score_difference(real, fake, seen.t, seen.process)))
