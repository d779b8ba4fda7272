"""A diffusion GAN: a small discriminator on the features of a denoiser that looks at noised samples."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.diffusion.denoiser import Denoiser, Featured
from limbeck.diffusion.times import Karras, Times
from limbeck.engine.objective import Loss, Objective, Term
from limbeck.engine.roles import Cast
from limbeck.engine.student import Student
from limbeck.engine.tick import Noised, Tick
from limbeck.errors import Incompatible, in_range
from limbeck.objectives.adversary import AdversarialLoss, NonSaturating, Penalty, summed
from limbeck.objectives.score.critic import Critic
from limbeck.teachers.lora import own_dtype


class Heads(nn.Module):
    """One small head for each feature map, logits summed: Σ_k MLP_k(mean over positions of f_k), [B].

    Args:
        widths: channels of each feature map, by tap.
        hidden: width of a head's hidden layer.
        apart: the logits of K heads stay apart, [B, K].
    """

    def __init__(self, widths: Mapping[str, int], hidden: int, *, apart: bool = False):
        super().__init__()
        self.apart = apart
        self.heads = nn.ModuleDict(
            {
                tap: nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, 1))
                for tap, width in widths.items()
            }
        )

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        own = next(self.parameters()).dtype  # finer than features of half precision
        pooled = {tap: (f.flatten(2).mean(2) if f.dim() > 2 else f).to(own) for tap, f in features.items()}
        logits = torch.stack([head(pooled[tap])[:, 0] for tap, head in self.heads.items()])
        return logits.mT if self.apart else logits.sum(0)


class Discriminator(nn.Module):
    """Heads, and the denoiser that they look through if it is the discriminator's own.

    Args:
        heads: on the features.
        eyes: None where the features are the critic's or the teacher's.
    """

    def __init__(self, heads: Heads, eyes: Featured | None):
        super().__init__()
        self.heads, self.eyes = heads, eyes


@dataclass(frozen=True, kw_only=True)
class GAN(Objective):
    """GAN on noised samples: softplus(−D(x_t)) against softplus(D(x_t)) + softplus(−D(y_t)), or another ``loss``.

    At the optimum of the default loss D = ln p_t − ln q_t, the log-ratio of data and student at each level.

    Args:
        on: whose features the discriminator reads: the critic's (DMD2), the frozen teacher's (LADD), or those of a
            trainable copy of the teacher that is its own.
        critic: settings of the critic, equal to those of the objective it is shared with.
        times: noise levels at which samples are judged.
        critic_steps: ticks to one step of the student; to be that of the objective it is added to.
        hidden: width of the discriminator's heads.
        feature_weight: weight of the discriminator's loss on the critic that lends its features, and then also on its
            heads; 0 leaves the critic alone.
        loss: of student and discriminator by their logits.
        penalty: on the discriminator's slope at real samples.
        apart: every head is a discriminator of its own, with its own loss; they are summed after the loss instead of
            before it.

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

    on: Literal["critic", "teacher", "own"] = "critic"
    critic: Critic = field(default_factory=Critic)
    times: Times = field(default_factory=Karras)
    critic_steps: int = 1
    hidden: int = 64
    feature_weight: float = 0.0
    loss: AdversarialLoss = field(default_factory=NonSaturating)
    penalty: Penalty | None = None
    apart: bool = False

    def __post_init__(self) -> None:
        in_range("critic_steps", self.critic_steps, 1)
        in_range("feature_weight", self.feature_weight, 0)

    def check(self, cast: Cast) -> None:
        cast.need_fields("x", by=self)
        cast.need("student", Student, by=self)
        if self.on == "teacher":
            cast.need("teacher", Featured, by=self)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        def student(tick: Tick) -> Loss:
            return Loss(summed(self.loss.student(self._logits(tick, tick.noised(self.times)))))

        return *self.discriminator(cast), Term("gan", "student", student, every=self.critic_steps, of=self)

    def discriminator(self, cast: Cast) -> tuple[Term, ...]:
        """Gets or creates the discriminator, and what trains it."""
        joined = (self.critic.join(cast),) if self.on == "critic" else ()
        cast.role("discriminator", lambda: self._network(cast), spec=self)
        if self.on == "critic":
            cast.watched.add(("critic", ("student", self.times)))

        def loss(tick: Tick) -> Iterator[Loss]:
            real = tick.noised(self.times, of="data")
            value = summed(self.loss.on_real(self._logits(tick, real)))
            yield Loss(value + self._priced(tick, real) if self.penalty else value)
            yield Loss(summed(self.loss.on_fake(self._logits(tick, tick.noised(self.times)))))

        through = self.on == "critic" and self.feature_weight > 0
        trains = ("critic", "discriminator") if through else ("discriminator",)
        weight = self.feature_weight if through else 1.0
        return *joined, Term("discriminator", trains, loss, weight=weight, key=("discriminator", self), of=self)

    def logits(self, tick: Tick, seen: Noised) -> Tensor:
        """D(x_t), [B], with gradients for what the loss under way trains; the sum of heads that are apart."""
        return summed(self._logits(tick, seen))

    def _logits(self, tick: Tick, seen: Noised) -> Tensor:
        """[B], or [B, K] where the heads are apart."""
        return self._discriminator(tick).heads(self._features(tick, seen))

    def _features(self, tick: Tick, seen: Noised) -> Mapping[str, Tensor]:
        eyes = self._discriminator(tick).eyes
        return tick.look(self.on if eyes is None else "discriminator", seen, eyes).features

    def _priced(self, tick: Tick, real: Noised) -> Tensor:
        def look(x_t: Tensor) -> Mapping[str, Tensor]:
            return self._features(tick, replace(real, x_t=x_t, key=None))

        assert self.penalty is not None
        return self.penalty.on(real.x_t, look, self._discriminator(tick).heads, tick.rng(("penalty", real.key)))

    @staticmethod
    def _discriminator(tick: Tick) -> Discriminator:
        discriminator = tick.cast.module("discriminator")
        assert isinstance(discriminator, Discriminator)
        return discriminator

    def _network(self, cast: Cast) -> Discriminator:
        if self.on == "own":
            eyes = cast.need("teacher", Denoiser, by=self).clone(trainable=True)
            if not isinstance(eyes, Featured):
                raise Incompatible("GAN", need="a trainable copy of the teacher that shows features", got=_a(eyes))
        else:
            eyes = cast.need(self.on, Featured, by=self)
        seen = next(eyes.parameters())
        heads = Heads(eyes.taps, self.hidden, apart=self.apart).to(seen.device, own_dtype(seen.dtype))
        return Discriminator(heads, eyes if self.on == "own" else None)


def _a(module: nn.Module) -> str:
    return f"a {type(module).__name__}"
