"""Distribution matching: the student's distribution descends a divergence to the teacher's, with a critic's help."""

from dataclasses import dataclass, field

from torch import Tensor

from limbeck.diffusion.process import like
from limbeck.diffusion.times import Karras, Times
from limbeck.engine.objective import Loss
from limbeck.engine.tick import Tick
from limbeck.objectives.score.critic import Critical


def distribution_matching(x: Tensor, real: Tensor, fake: Tensor, *, normalise: bool = True) -> Tensor:
    """½‖x − sg(x − (ψ − T)/n)‖²/D with n = mean|x − T| of each example: its gradient by x is (ψ − T)/(n·D), [B].

    Args:
        x: the student's samples, [B, …].
        real: T, x0 by the teacher, [B, …].
        fake: ψ, x0 by the critic, [B, …].
        normalise: divide by n; without, the expectation is the gradient of the diffused KL divergence.

    Source: DMD, arXiv 2311.18828, eq. 7 and 8; DMD2, arXiv 2405.14867, eq. 1.

    >>> import torch
    >>> distribution_matching(torch.zeros(1, 2), torch.ones(1, 2), torch.zeros(1, 2))
    tensor([0.5000])
    """
    gradient = fake - real
    if normalise:
        gradient = gradient / like((x - real).detach().abs().flatten(1).mean(1).clamp_min(1e-5), x)
    return ((x - (x - gradient).detach()) ** 2).flatten(1).mean(1) / 2


def identity_score(x: Tensor, real: Tensor, fake: Tensor, *, alpha: float = 1.0, normalise: bool = True) -> Tensor:
    """⟨T − ψ, (T − x) − a·(T − ψ)⟩/n, with gradients through the inputs of T and ψ, summed over each example, [B].

    With a = ½ its gradient is half that of the Fisher divergence, with a = 1 half that at frozen sampling.

    Args:
        x: the student's samples, [B, …].
        real: T, x0 by the teacher at the noised x, with its graph, [B, …].
        fake: ψ, x0 by the critic, with its graph, [B, …].
        alpha: a, the weight of the squared term.
        normalise: divide by n = mean|x − T| of each example.

    Source: SiD, arXiv 2404.04057, eq. 23 and algorithm 1.

    >>> import torch
    >>> identity_score(torch.zeros(1, 2), torch.ones(1, 2), torch.zeros(1, 2), alpha=0.5)
    tensor([1.])
    """
    gap = real - fake
    value = (gap * ((real - x) - alpha * gap)).flatten(1).sum(1)
    return value / (x - real).detach().abs().flatten(1).mean(1).clamp_min(1e-5) if normalise else value


@dataclass(frozen=True, kw_only=True)
class DMD(Critical):
    """Distribution matching distillation on two time scales: the critic learns every tick, the student every few.

    Args:
        critic: the denoiser ψ of the student's distribution.
        times: noise levels at which distributions are compared.
        guidance: on the teacher.
        critic_steps: steps of the critic to one of the student.
        normalise: divide each example's gradient by its mean |x − T|.

    Raises:
        Incompatible: a teacher that is no `Denoiser`, a student that draws no samples.

    Source: Yin et al. 2024, arXiv 2405.14867, eq. 1 and sec. 4.2.

    >>> import torch
    >>> from limbeck import GaussianMixture, Particles, distill
    >>> teacher = GaussianMixture(means=torch.ones(1, 2), std=0.5)
    >>> run = distill(teacher, Particles(torch.zeros(8, 2)), DMD(critic_steps=2), steps=2, batch=8)
    >>> [sorted(step.losses) for step in run]
    [['critic'], ['critic', 'dmd']]
    """

    times: Times = field(default_factory=lambda: Karras(lo=0.02, hi=0.98))
    critic_steps: int = 5
    normalise: bool = True

    def loss(self, tick: Tick) -> Loss:
        seen = tick.noised(self.times)
        real, fake = tick.denoise("teacher", seen, self.guidance), tick.denoise("critic", seen)
        return Loss(distribution_matching(seen.x, real, fake, normalise=self.normalise))


@dataclass(frozen=True, kw_only=True)
class SiD(Critical):
    """Score identity distillation: the Fisher divergence to the teacher, differentiated through both denoisers.

    Args:
        critic: the denoiser ψ of the student's distribution.
        times: noise levels at which scores are compared.
        guidance: on the teacher.
        critic_steps: steps of the critic to one of the student.
        alpha: weight of the squared term; 1.2 in SiD, 1 in SiDA.
        normalise: divide each example's loss by its mean |x − T|.

    Raises:
        Incompatible: a teacher that is no `Denoiser`, a student that draws no samples.

    Source: Zhou et al. 2024, arXiv 2404.04057, eq. 23.

    >>> import torch
    >>> from limbeck import GaussianMixture, Particles, distill
    >>> teacher = GaussianMixture(means=torch.ones(1, 2), std=0.5)
    >>> sorted(next(iter(distill(teacher, Particles(torch.zeros(8, 2)), SiD(), steps=1, batch=8))).losses)
    ['critic', 'sid']
    """

    times: Times = field(default_factory=lambda: Karras(lo=0.0, hi=0.8))
    alpha: float = 1.2
    normalise: bool = True

    def loss(self, tick: Tick) -> Loss:
        seen = tick.noised(self.times)
        real = tick.denoise("teacher", seen, self.guidance, grad=True)
        fake = tick.denoise("critic", seen, grad=True)
        return Loss(identity_score(seen.x, real, fake, alpha=self.alpha, normalise=self.normalise))
