"""The critic: a denoiser of the student's own distribution, trained beside it on its samples."""

from abc import abstractmethod
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.guidance import Guidance
from limbeck.diffusion.process import Process
from limbeck.diffusion.times import LogNormal, Times, Uniform
from limbeck.engine.objective import Loss, Objective, Term
from limbeck.engine.roles import Cast
from limbeck.engine.student import Student
from limbeck.engine.tick import Noised, Tick
from limbeck.errors import in_range
from limbeck.objectives.score.noise import Fresh, Noise
from limbeck.teachers.lora import EVERY, check_adapters, low_rank
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
        rank: of low-rank adapters on the teacher's own frozen weights; None for a network of its own.
        targets: the layers that have adapters, as in `low_rank`.
        dropout: share of ticks in which it learns without the condition.
        noise: how samples become x_t, and what it learns there.
        snr: the limit of the weight min(SNR, snr) on the error of x0 (arXiv 2303.09556, sec. 3.4), in the place of that
            of `denoising`.

    Source: a full critic as in DMD, arXiv 2311.18828; adapters as in ProlificDreamer, arXiv 2305.16213, sec. 3.3.
    """

    times: Times = field(default_factory=LogNormal)
    rank: int | None = None
    dropout: float = 0.0
    noise: Noise = field(default_factory=Fresh)
    snr: float | None = None
    targets: tuple[str, ...] = EVERY

    def __post_init__(self) -> None:
        check_adapters(self.rank, self.targets)
        in_range("dropout", self.dropout, 0, 1)
        in_range("snr", 1.0 if self.snr is None else self.snr, 1e-9)

    def __repr__(self) -> str:
        """Random numbers have this for a name: without targets where they are all layers, it is what it always was."""
        said = [f.name for f in fields(self) if f.name != "targets" or self.targets != EVERY]
        return f"Critic({', '.join(f'{name}={getattr(self, name)!r}' for name in said)})"

    def join(self, cast: Cast) -> Term:
        """Gets or creates the critic, a trainable clone of the teacher, and its loss."""
        teacher = cast.need("teacher", Denoiser, by=self)
        self.noise.check(cast)
        cast.role("critic", lambda: self.network(teacher), spec=self)

        def loss(tick: Tick) -> Loss:
            seen = self.noise.see(tick, self.times)
            if self.dropout and tick.rng(("dropout", self), shared=True).uniform(1).item() < self.dropout:
                seen = replace(seen, cond=None, key=(seen.key, None))
            x0 = tick.denoise("critic", seen, grad=True)
            target, weight = self.noise.target(seen)
            error = denoising(x0, target, seen.t, seen.process, teacher.sigma_data)
            return Loss(weight.to(error) * self.weight(seen.t, seen.process, teacher.sigma_data).to(error) * error)

        return Term("critic", "critic", loss, key=("critic", self), of=self)

    def weight(self, t: Tensor, process: Process, sigma_data: float = 0.5) -> Tensor:
        """What `denoising` is multiplied by, [B]: 1, or min(SNR, snr) over its own weight."""
        if self.snr is None:
            return torch.ones_like(t)
        return (process.ratio(t) ** -2).clamp_max(self.snr) / denoising_weight(t, process, sigma_data)

    def network(self, teacher: Denoiser) -> Denoiser:
        """The critic before training."""
        return teacher.clone(trainable=True) if self.rank is None else low_rank(teacher, self.rank, self.targets)


@dataclass(frozen=True, kw_only=True)
class Critical(Objective):
    """What objectives with a critic share: the critic learns every tick, the student every few.

    Args:
        critic: settings of the denoiser ψ of the student's distribution.
        times: noise levels at which teacher and critic are compared.
        guidance: on the teacher.
        critic_guidance: on the critic where it is compared with the teacher; what it learns is up to ``critic``.
        critic_steps: steps of the critic to one of the student.
    """

    critic: Critic = field(default_factory=Critic)
    times: Times = field(default_factory=Uniform)
    guidance: Guidance | None = None
    critic_guidance: Guidance | None = None
    critic_steps: int = 1

    def __post_init__(self) -> None:
        in_range("critic_steps", self.critic_steps, 1)

    def check(self, cast: Cast) -> None:
        cast.need("teacher", Denoiser, by=self)
        cast.need("student", Student, by=self)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        name = type(self).__name__.lower()
        return self.critic.join(cast), Term(name, "student", self.loss, every=self.critic_steps, of=self)

    def compared(self, tick: Tick) -> tuple[Noised, Tensor, Tensor]:
        """The student's samples at noise levels, and x0 by teacher and critic there, with gradients through both."""
        seen = tick.noised(self.times)
        real = tick.denoise("teacher", seen, self.guidance, grad=True)
        return seen, real, tick.denoise("critic", seen, self.critic_guidance, grad=True)

    @abstractmethod
    def loss(self, tick: Tick) -> Loss:
        """The student's loss."""
