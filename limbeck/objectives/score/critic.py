"""The critic: a denoiser of the student's own distribution, trained beside it on its samples."""

from abc import abstractmethod
from dataclasses import dataclass, field

from torch import Tensor

from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.guidance import Guidance
from limbeck.diffusion.process import Process
from limbeck.diffusion.times import LogNormal, Times, Uniform
from limbeck.engine.objective import Loss, Objective, Term
from limbeck.engine.roles import Cast
from limbeck.engine.student import Student
from limbeck.engine.tick import Tick
from limbeck.errors import in_range
from limbeck.teachers.trained import denoising_weight


def denoising(x0: Tensor, target: Tensor, t: Tensor, process: Process, sigma_data: float = 0.5) -> Tensor:
    """Denoising loss w·‖x0 − target‖²/D with w = (r² + s²)/(r·s)², r = σ/α, of unit scale at every level.

    Args:
        x0: predictions, [B, …].
        target: clean samples, [B, …].
        t: noise levels, [B].
        process: the noise process.
        sigma_data: s, the data's standard deviation.

    Returns:
        One loss per example, [B].

    Source: EDM, arXiv 2206.00364, eq. 108 and table 1.

    >>> import torch
    >>> from limbeck.diffusion import EDM
    >>> denoising(torch.ones(1, 3), torch.zeros(1, 3), torch.tensor([0.5], dtype=torch.float64), EDM())
    tensor([8.])
    """
    return denoising_weight(t, process, sigma_data).to(x0) * ((x0 - target) ** 2).flatten(1).mean(1)


@dataclass(frozen=True, kw_only=True)
class Critic:
    """Settings of the critic role. Objectives with equal settings share one critic and its loss.

    Args:
        times: noise levels that it learns at.
    """

    times: Times = field(default_factory=LogNormal)

    def join(self, cast: Cast) -> Term:
        """Gets or creates the critic, a trainable clone of the teacher, and its loss."""
        teacher = cast.need("teacher", Denoiser, by=self)
        cast.role("critic", lambda: teacher.clone(trainable=True), spec=self)

        def loss(tick: Tick) -> Loss:
            seen = tick.noised(self.times)
            x0 = tick.denoise("critic", seen, grad=True)
            return Loss(denoising(x0, seen.x, seen.t, seen.process, teacher.sigma_data))

        return Term("critic", "critic", loss, key=("critic", self), of=self)


@dataclass(frozen=True, kw_only=True)
class Critical(Objective):
    """What objectives with a critic share: the critic learns every tick, the student every few.

    Args:
        critic: settings of the denoiser ψ of the student's distribution.
        times: noise levels at which teacher and critic are compared.
        guidance: on the teacher.
        critic_steps: steps of the critic to one of the student.
    """

    critic: Critic = field(default_factory=Critic)
    times: Times = field(default_factory=Uniform)
    guidance: Guidance | None = None
    critic_steps: int = 1

    def __post_init__(self) -> None:
        in_range("critic_steps", self.critic_steps, 1)

    def check(self, cast: Cast) -> None:
        cast.need("teacher", Denoiser, by=self)
        cast.need("student", Student, by=self)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        name = type(self).__name__.lower()
        return self.critic.join(cast), Term(name, "student", self.loss, every=self.critic_steps, of=self)

    @abstractmethod
    def loss(self, tick: Tick) -> Loss:
        """The student's loss."""
