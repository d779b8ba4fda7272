"""Objectives on logits: a classifier learns from labels, and from what another one thinks of all classes."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.engine.objective import Loss, Objective, Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Tick
from limbeck.errors import BadSetting, Incompatible, in_range


def soft_kl(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """T²·KL(softmax(t/T) ‖ softmax(s/T)), summed over classes, [B]; its gradient by s is T·(p_s − p_t).

    Args:
        student: logits s, [B, C].
        teacher: logits t, [B, C]; no gradient flows to them.
        temperature: T.

    Source: Hinton et al. 2015, arXiv 1503.02531, sec. 2; the factor T² keeps gradients of one size as T changes.

    >>> soft_kl(torch.zeros(1, 2), torch.zeros(1, 2), temperature=4.0)
    tensor([0.])
    """
    s = F.log_softmax(_wide(student) / temperature, -1)
    t = F.log_softmax(_wide(teacher).detach() / temperature, -1)
    value = (t.exp() * (t - s)).sum(-1)
    return temperature**2 * (value + (-value).clamp_min(0).detach())  # rounding alone goes below 0; gradients stay


def _wide(logits: Tensor) -> Tensor:
    """At least float32: half precision makes divergences negative."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


@dataclass(frozen=True, kw_only=True)
class KD(Objective):
    """Knowledge distillation: (1 − α)·CE(s, y) + α·T²·KL(softmax(t/T) ‖ softmax(s/T)).

    Args:
        temperature: T.
        alpha: α, the weight of the teacher; 1 needs no labels.

    Raises:
        BadSetting: a temperature that is not above 0, or α outside [0, 1].
        Incompatible: no teacher, no inputs x, or no labels y where α < 1.

    Source: Hinton et al. 2015, arXiv 1503.02531, sec. 2.

    >>> from torch import nn
    >>> from limbeck import Dataset, distill
    >>> data = Dataset(x=torch.randn(9, 4), y=torch.arange(9) % 3)
    >>> run = distill(nn.Linear(4, 3), nn.Linear(4, 3), KD(), data, steps=1, batch=8)
    >>> sorted(next(iter(run)).losses)
    ['kd']
    """

    temperature: float = 4.0
    alpha: float = 0.9

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise BadSetting(f"temperature must be above 0, got {self.temperature:g}.")
        in_range("alpha", self.alpha, 0, 1)

    def check(self, cast: Cast) -> None:
        cast.need_network("teacher", by=self)
        cast.need_network("student", by=self)
        cast.need_fields("x", *(("y",) if self.alpha < 1 else ()), by=self)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        teacher, student = cast.teacher, cast.student

        def loss(tick: Tick) -> Loss:
            x = tick.batch["x"]
            s = student(x)
            with torch.no_grad():
                t = teacher(x)
            if s.shape != t.shape:
                need, got = f"a student with {t.shape[-1]} classes", str(s.shape[-1])
                raise Incompatible("KD", need=need, got=got)
            value = self.alpha * soft_kl(s, t, temperature=self.temperature)
            if self.alpha < 1:
                value = value + (1 - self.alpha) * F.cross_entropy(_wide(s), tick.batch["y"], reduction="none")
            return Loss(value)

        return (Term("kd", "student", loss, of=self),)


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Objective):
    """−ln softmax(s)_y: plain training on labels, the baseline of every other objective on logits.

    Args:
        smoothing: share of the target that is spread over all classes.

    >>> from torch import nn
    >>> from limbeck import Dataset, distill
    >>> data = Dataset(x=torch.randn(9, 4), y=torch.arange(9) % 3)
    >>> sorted(next(iter(distill(None, nn.Linear(4, 3), CrossEntropy(), data, steps=1, batch=8))).losses)
    ['cross_entropy']
    """

    smoothing: float = 0.0

    def __post_init__(self) -> None:
        in_range("smoothing", self.smoothing, 0, 1)

    def check(self, cast: Cast) -> None:
        cast.need_network("student", by=self)
        cast.need_fields("x", "y", by=self)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        student = cast.student

        def loss(tick: Tick) -> Loss:
            logits = _wide(student(tick.batch["x"]))
            y = tick.batch["y"]
            return Loss(F.cross_entropy(logits, y, reduction="none", label_smoothing=self.smoothing))

        return (Term("cross_entropy", "student", loss, of=self),)
