"""A diffusion GAN: a small discriminator on the features of a denoiser that looks at noised samples."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.diffusion.denoiser import Featured
from limbeck.diffusion.times import Karras, Times
from limbeck.engine.objective import Loss, Objective, Term
from limbeck.engine.roles import Cast
from limbeck.engine.student import Student
from limbeck.engine.tick import Noised, Tick
from limbeck.errors import in_range
from limbeck.objectives.score.critic import Critic


class Heads(nn.Module):
    """One small head for each feature map, logits summed: Σ_k MLP_k(mean over positions of f_k), [B].

    Args:
        widths: channels of each feature map, by tap.
        hidden: width of a head's hidden layer.
    """

    def __init__(self, widths: Mapping[str, int], hidden: int):
        super().__init__()
        self.heads = nn.ModuleDict(
            {
                tap: nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, 1))
                for tap, width in widths.items()
            }
        )

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        pooled = {tap: f.flatten(2).mean(2) if f.dim() > 2 else f for tap, f in features.items()}
        return torch.stack([head(pooled[tap])[:, 0] for tap, head in self.heads.items()]).sum(0)


@dataclass(frozen=True, kw_only=True)
class GAN(Objective):
    """Non-saturating GAN on noised samples: softplus(−D(x_t)) against softplus(D(x_t)) + softplus(−D(y_t)).

    Args:
        on: whose features the discriminator reads: the critic's (DMD2) or the frozen teacher's (LADD).
        critic: settings of the critic, equal to those of the objective it is shared with.
        times: noise levels at which samples are judged.
        critic_steps: ticks to one step of the student; to be that of the objective it is added to.
        hidden: width of the discriminator's heads.
        feature_weight: weight of the discriminator's loss on the critic that lends its features, and then also on its
            heads; 0 leaves the critic alone.

    Raises:
        Incompatible: no real samples, or a denoiser that shows no features.

    Source: DMD2, arXiv 2405.14867, eq. 3 and sec. 4.3; LADD, arXiv 2403.12015, sec. 3.

    >>> from limbeck import OneStep, Trained, distill
    >>> from limbeck.problems.networks import ResidualMLP
    >>> teacher = Trained(ResidualMLP(shape=(2,), width=16, blocks=1))
    >>> student = OneStep(teacher.clone(trainable=True), shape=(2,))
    >>> step = next(iter(distill(teacher, student, GAN(), torch.randn(32, 2), steps=1, batch=8)))
    >>> sorted(step.losses)
    ['critic', 'discriminator', 'gan']
    """

    on: Literal["critic", "teacher"] = "critic"
    critic: Critic = field(default_factory=Critic)
    times: Times = field(default_factory=Karras)
    critic_steps: int = 1
    hidden: int = 64
    feature_weight: float = 0.0

    def __post_init__(self) -> None:
        in_range("critic_steps", self.critic_steps, 1)
        in_range("feature_weight", self.feature_weight, 0)

    def check(self, cast: Cast) -> None:
        cast.need_fields("x", by=self)
        cast.need("student", Student, by=self)
        if self.on == "teacher":
            cast.need("teacher", Featured, by=self)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        joined = (self.critic.join(cast),) if self.on == "critic" else ()
        eyes = cast.need(self.on, Featured, by=self)
        like = next(eyes.parameters())  # dtype and device
        heads = cast.role("discriminator", lambda: Heads(eyes.taps, self.hidden).to(like), spec=self).module

        def logits(seen: Noised) -> Tensor:
            return heads(eyes.look(seen.x_t, seen.t, seen.cond, taps=tuple(eyes.taps), x0=False).features)

        def student(tick: Tick) -> Loss:
            return Loss(F.softplus(-logits(tick.noised(self.times))))

        def discriminator(tick: Tick) -> Loss:
            fake, real = tick.noised(self.times), tick.noised(self.times, of="data")
            return Loss(F.softplus(logits(fake)) + F.softplus(-logits(real)))

        through = self.on == "critic" and self.feature_weight > 0
        trains = ("critic", "discriminator") if through else ("discriminator",)
        weight = self.feature_weight if through else 1.0
        return (
            *joined,
            Term("discriminator", trains, discriminator, weight=weight, key=("discriminator", self), of=self),
            Term("gan", "student", student, every=self.critic_steps, of=self),
        )
