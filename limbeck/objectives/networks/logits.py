"""Objectives on logits: a classifier learns from labels, and from what another one thinks of all classes."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.engine.data import Batch
from limbeck.engine.objective import Loss, Objective, Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Tick
from limbeck.errors import Incompatible, above_zero, in_range


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
    s = F.log_softmax(wide(student) / temperature, -1)
    t = F.log_softmax(wide(teacher).detach() / temperature, -1)
    return temperature**2 * from_zero(weighed(t, s).sum(-1))


def weighed(p: Tensor, q: Tensor) -> Tensor:
    """e^p·(p − q) of logarithms of probabilities, [B, C]: 0 where p has none, whatever q has there.

    >>> weighed(torch.tensor([0.0, -torch.inf]), torch.tensor([-1.0, -torch.inf]))
    tensor([1., 0.])
    """
    return p.exp() * torch.where(p.isneginf(), 0, p - q)


def from_zero(value: Tensor) -> Tensor:
    """A divergence, which rounding alone takes below 0, at 0 there; gradients stay.

    >>> from_zero(torch.tensor([-1e-8, 2.0]))
    tensor([0., 2.])
    """
    return value + (-value).clamp_min(0).detach()


def wide(x: Tensor) -> Tensor:
    """At least float32: half precision makes divergences negative."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def jensen_shannon(student: Tensor, teacher: Tensor) -> Tensor:
    """½·KL(p_t ‖ m) + ½·KL(p_s ‖ m), m = (p_t + p_s)/2: symmetric, at most ln 2, 0 only where both are equal, [B].

    Args:
        student: logits, [B, C].
        teacher: logits, [B, C]; no gradient flows to them.

    Source: Lin 1991, "Divergence measures based on the Shannon entropy".

    >>> jensen_shannon(torch.tensor([[99.0, 0.0]]), torch.tensor([[0.0, 99.0]]))
    tensor([0.6931])
    """
    s, t = wide(student).log_softmax(-1), wide(teacher).detach().log_softmax(-1)
    none = s.isneginf() & t.isneginf()  # whose gradient would be NaN
    m = torch.logaddexp(s.masked_fill(none, 0), t.masked_fill(none, 0)) - math.log(2)
    return 0.5 * from_zero((weighed(t, m) + weighed(s, m)).sum(-1))


@dataclass(frozen=True, kw_only=True)
class Between(Objective):
    """What a student loses by another network. A subclass is a frozen dataclass.

    Passes are shared with every other loss of the tick, so that ``KD() + DKD() + CrossEntropy()`` asks each once.

    Args:
        student: the name of who learns.
        teacher: the name of whom it follows: a teacher, or another student, which does not move by it.
    """

    student: str = "student"
    teacher: str = "teacher"

    coupled: ClassVar[bool] = False
    """Whether the loss compares examples with each other, so that a batch cannot be cut."""

    @property
    def fields(self) -> tuple[str, ...]:
        """What batches must bring: inputs x, and labels y where the loss wants them."""
        return ("x",)

    @property
    def name(self) -> str:
        """Of the loss, with the names of networks that are not the usual ones."""
        others = [who for who, usual in ((self.student, "student"), (self.teacher, "teacher")) if who != usual]
        return " ".join((type(self).__name__.lower(), *others))

    def check(self, cast: Cast) -> None:
        cast.need_network(self.teacher, by=self)
        cast.need_network(self.student, by=self)
        cast.need_fields(*self.fields, by=self)


class OnLogits(Between):
    """A loss of the student's logits, given the teacher's and perhaps labels. A subclass is a frozen dataclass."""

    @abstractmethod
    def value(self, student: Tensor, teacher: Tensor, tick: Tick) -> Tensor | Loss:
        """The loss, [B], or [] where it is ``coupled``, of logits [B, C], at least float32, the teacher's fixed.

        The tick has the batch, and random numbers. Where examples have weights, it is a `Loss`.
        """

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        def loss(tick: Tick) -> Loss:
            s, t = both_logits(tick, self, self.student, self.teacher)
            with torch.autocast(s.device.type, enabled=False):
                made = self.value(s, t, tick)
            return made if isinstance(made, Loss) else Loss(made)

        return (Term(self.name, self.student, loss, coupled=self.coupled, of=self),)


def logits(tick: Tick, who: str) -> Tensor:
    """A network's logits at the batch's x, at least float32, [B, C]."""
    out = tick.answer(who).out
    assert out is not None
    return wide(out)


def both_logits(tick: Tick, by: object, one: str = "student", other: str = "teacher") -> tuple[Tensor, Tensor]:
    """Logits of two networks, [B, C] each.

    Raises:
        Incompatible: networks of different numbers of classes.
    """
    t = logits(tick, other)  # before there is a graph, which memory would lie beside
    s = logits(tick, one)
    if s.shape != t.shape:
        raise Incompatible(type(by).__name__, need=f"a {one} with {t.shape[-1]} classes", got=str(s.shape[-1]))
    return s, t


def hard_labels(batch: Batch, by: object) -> Tensor:
    """The labels y of a batch, [B] integers.

    Raises:
        Incompatible: shares of classes, as mixed examples have them.
    """
    y = batch["y"]
    if y.dim() != 1 or y.is_floating_point():
        raise Incompatible(type(by).__name__, need="labels y that are classes", got=f"y of shape {list(y.shape)}")
    return y


@dataclass(frozen=True, kw_only=True)
class KD(OnLogits):
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
        above_zero("temperature", self.temperature)
        in_range("alpha", self.alpha, 0, 1)

    @property
    def fields(self) -> tuple[str, ...]:
        return ("x", "y") if self.alpha < 1 else ("x",)

    def value(self, student: Tensor, teacher: Tensor, tick: Tick) -> Tensor:
        value = self.alpha * soft_kl(student, teacher, temperature=self.temperature)
        if self.alpha < 1:
            value = value + (1 - self.alpha) * F.cross_entropy(student, tick.batch["y"], reduction="none")
        return value


@dataclass(frozen=True, kw_only=True)
class JensenShannonKD(OnLogits):
    """`jensen_shannon` of student and teacher: no labels, no temperature, and no loss above ln 2.

    Raises:
        Incompatible: no teacher, no inputs x.

    Source: SSLD, Cui et al. 2021, arXiv 2103.05959.

    >>> from torch import nn
    >>> from limbeck import Dataset, distill
    >>> data = Dataset(x=torch.randn(9, 4))
    >>> run = distill(nn.Linear(4, 3), nn.Linear(4, 3), JensenShannonKD(), data, steps=1, batch=8)
    >>> sorted(next(iter(run)).losses)
    ['jensenshannonkd']
    """

    def value(self, student: Tensor, teacher: Tensor, tick: Tick) -> Tensor:
        return jensen_shannon(student, teacher)


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Objective):
    """−ln softmax(s)_y: plain training on labels, the baseline of every other objective on logits.

    Labels y are classes, [B] integers, or shares of all classes, [B, C], as mixed examples have them.

    Args:
        student: the name of who learns.
        smoothing: share of the target that is spread over all classes.

    >>> from torch import nn
    >>> from limbeck import Dataset, distill
    >>> data = Dataset(x=torch.randn(9, 4), y=torch.arange(9) % 3)
    >>> sorted(next(iter(distill(None, nn.Linear(4, 3), CrossEntropy(), data, steps=1, batch=8))).losses)
    ['cross_entropy']
    """

    student: str = "student"
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        in_range("smoothing", self.smoothing, 0, 1)

    def check(self, cast: Cast) -> None:
        cast.need_network(self.student, by=self)
        cast.need_fields("x", "y", by=self)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        def loss(tick: Tick) -> Loss:
            s, y = logits(tick, self.student), tick.batch["y"]
            return Loss(F.cross_entropy(s, y, reduction="none", label_smoothing=self.smoothing))

        name = "cross_entropy" if self.student == "student" else f"cross_entropy {self.student}"
        return (Term(name, self.student, loss, of=self),)
