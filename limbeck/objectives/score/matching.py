"""Distribution matching: the student's distribution descends a divergence to the teacher's, with a critic's help."""

from dataclasses import dataclass, field

from torch import Tensor

from limbeck.diffusion.times import Karras, Times
from limbeck.engine.objective import Loss
from limbeck.engine.tick import Tick
from limbeck.objectives.score.critic import Critical
from limbeck.objectives.score.distillation import ScoreDistillation
from limbeck.objectives.score.parts import Fake, Part, PerSample, Shape, Weight


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
    return value / distance_to(x, real) if normalise else value


def distance_to(x: Tensor, real: Tensor) -> Tensor:
    """n = mean|x − T| of each example, a constant to the gradient and at least 1e-5, [B].

    >>> import torch
    >>> distance_to(torch.zeros(1, 2), torch.tensor([[1.0, -3.0]]))
    tensor([2.])
    """
    return (x - real).detach().abs().flatten(1).mean(1).clamp_min(1e-5)


@dataclass(frozen=True, kw_only=True)
class DMD(ScoreDistillation):
    """Distribution matching distillation on two time scales: the critic learns every tick, the student every few.

    g = (ψ − T)/(n·D), n = mean|x − T|: VSD with w = σ/α, which makes it a difference of x0, and equal steps from every
    noise level. Without ``shape`` its expectation is the gradient of the diffused KL divergence; with the critic's own
    times and pace as well, ``DMD(shape=(), times=LogNormal(), critic_steps=1)``, it is Diff-Instruct, arXiv 2305.18455.

    Args: those of `ScoreDistillation`.

    Source: Yin et al. 2024, arXiv 2405.14867, eq. 1 and sec. 4.2; the normaliser is arXiv 2311.18828, eq. 8.

    >>> import torch
    >>> from limbeck import GaussianMixture, Particles, distill
    >>> teacher = GaussianMixture(means=torch.ones(1, 2), std=0.5)
    >>> run = distill(teacher, Particles(torch.zeros(8, 2)), DMD(critic_steps=2), steps=2, batch=8)
    >>> [sorted(step.losses) for step in run]
    [['critic'], ['critic', 'dmd']]
    """

    fake: Part = field(default_factory=Fake)
    weight: Weight = field(default_factory=lambda: Weight(sigma=1.0, alpha=-1.0))
    times: Times = field(default_factory=lambda: Karras(lo=0.02, hi=0.98))
    shape: tuple[Shape, ...] = (PerSample(),)
    critic_steps: int = 5


@dataclass(frozen=True, kw_only=True)
class SiD(Critical):
    """Score identity distillation: the Fisher divergence to the teacher, differentiated through both denoisers.

    Args:
        critic: the denoiser ψ of the student's distribution.
        times: noise levels at which scores are compared.
        guidance: on the teacher.
        critic_guidance: on the critic; ``CFG(scale=0)`` with ``Critic(dropout=1)``, a critic without condition beside a
            teacher without guidance, is Zero-CFG, and a negative scale is Anti-CFG (arXiv 2505.12674).
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
        seen, real, fake = self.compared(tick)
        return Loss(identity_score(seen.x, real, fake, alpha=self.alpha, normalise=self.normalise))
