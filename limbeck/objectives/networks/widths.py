"""Objectives on slimmable networks: narrow passes learn from labels, or from the full width of the same weights."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.diffusion.denoiser import Seen
from limbeck.engine.objective import Loss, Objective, Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Tick
from limbeck.errors import BadSetting, Incompatible, above_zero, in_range
from limbeck.objectives.networks.features import one_each
from limbeck.objectives.networks.logits import logits, soft_kl, wide
from limbeck.students.slimmable import Elastic


@dataclass(frozen=True, kw_only=True)
class AtWidths(Objective):
    """A mean over passes of a slimmable student, most of them narrow. A subclass is a frozen dataclass with `value`.

    Each tick has some fixed widths and some at random, each layer by itself. Objectives of the same least width draw
    the same ones and share passes.

    Args:
        widths: shares of the channels of every layer.
        drawn: how many passes more, each layer's share uniform between the least of ``widths`` and 1.
    """

    widths: tuple[float, ...] = (0.25,)
    drawn: int = 1

    def __post_init__(self) -> None:
        if not self.widths:
            raise BadSetting(f"{type(self).__name__} needs widths, such as widths=(0.25,).")
        for share in self.widths:
            above_zero("a width", share)
            in_range("a width", share, 0, 1)
        in_range("drawn", self.drawn, 0)

    @property
    def fields(self) -> tuple[str, ...]:
        """What batches must bring: inputs x, and labels y where the loss wants them."""
        return ("x",)

    @abstractmethod
    def value(self, seen: Seen, tick: Tick) -> Tensor:
        """The loss, [B], of one pass."""

    def check(self, cast: Cast) -> None:
        cast.need("student", Elastic, by=self)
        cast.need_fields(*self.fields, by=self)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        net = cast.need("student", Elastic, by=self)

        def loss(tick: Tick) -> Loss:
            parts = [self.value(at_width(tick, shares), tick) for shares in self._shares(net, tick)]
            return Loss(sum(parts[1:], parts[0]) / len(parts))

        return (Term(type(self).__name__.lower(), "student", loss, of=self),)

    def _shares(self, net: Elastic, tick: Tick) -> list[Tensor]:
        least, rng = min(self.widths), tick.rng("widths", shared=True)
        drawn = [least + (1 - least) * rng.uniform(net.cuts, dtype=torch.float32).cpu() for _ in range(self.drawn)]
        return [*map(net.widths, self.widths), *drawn]


def at_width(tick: Tick, shares: Tensor) -> Seen:
    """A pass of the student at these shares of its channels, made once; at full width the pass that all share."""
    if bool((shares == 1).all()):
        return tick.answer("student")
    return tick.answer("student", {"x": tick.batch["x"], "shares": shares}, ("shares", *shares.tolist()))


def by_task(out: Tensor, tasks: tuple[int, ...], by: object) -> tuple[Tensor, ...]:
    """Logits [B, ΣC] as those of each task, [B, C] each; all of them as one where ``tasks`` is empty.

    Raises:
        Incompatible: sizes that do not add up to the outputs.
    """
    if tasks and sum(tasks) != out.shape[1]:
        need, got = f"a student with {sum(tasks)} outputs for tasks of {tasks} classes", str(out.shape[1])
        raise Incompatible(type(by).__name__, need=need, got=got)
    return wide(out).split(tasks or out.shape[1], 1)


def task_cross_entropy(parts: tuple[Tensor, ...], y: Tensor) -> Tensor:
    """Mean over tasks of −ln softmax(s_k)_{y_k}, [B].

    Args:
        parts: logits s_k of each task, [B, C_k].
        y: classes [B, K], or [B] for one task.

    >>> task_cross_entropy((torch.zeros(1, 2), torch.zeros(1, 4)), torch.tensor([[0, 3]]))
    tensor([1.0397])
    """
    labels = y.reshape(len(y), -1).unbind(1)
    losses = [F.cross_entropy(s, label, reduction="none") for s, label in zip(parts, labels, strict=True)]
    return torch.stack(losses).mean(0)


@dataclass(frozen=True, kw_only=True)
class WidthCrossEntropy(AtWidths):
    """Cross-entropy to labels at every width: `task_cross_entropy`, mean over passes.

    With ``widths=(1.0,)`` and none drawn it is that of the full width alone.

    Args: those of `AtWidths`.
        tasks: numbers of classes, where the outputs are those of several tasks; then labels y are [B, K].

    Raises:
        BadSetting: no widths, or some outside (0, 1].
        Incompatible: a student that is not slimmable, no inputs x or labels y, outputs that are not those of the tasks.

    Source: Yu et al. 2018, arXiv 1812.08928, for fixed widths; Yu & Huang 2019, arXiv 1903.05134, for drawn ones.

    >>> from torch import nn
    >>> from limbeck import Dataset, Slimmable, distill
    >>> student = Slimmable(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> data = Dataset(x=torch.randn(9, 4), y=torch.arange(9) % 3)
    >>> sorted(next(iter(distill(None, student, WidthCrossEntropy(), data, steps=1, batch=8))).losses)
    ['widthcrossentropy']
    """

    tasks: tuple[int, ...] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        return ("x", "y")

    def value(self, seen: Seen, tick: Tick) -> Tensor:
        assert seen.out is not None
        return task_cross_entropy(by_task(seen.out, self.tasks, self), tick.batch["y"])


@dataclass(frozen=True, kw_only=True)
class InPlaceKD(AtWidths):
    """In-place distillation: T²·KL(full ‖ narrow) at every width, where the full width does not move by it.

    Args: those of `AtWidths`.
        temperature: T.
        tasks: numbers of classes, where the outputs are those of several tasks; the mean over them counts.
        teacher: whom narrow passes follow: the student itself at full width, or a teacher's name.

    Raises:
        BadSetting: no widths, or some outside (0, 1]; a temperature that is not above 0.
        Incompatible: a student that is not slimmable, no inputs x.

    Source: Yu & Huang 2019, arXiv 1903.05134, where the widest, the narrowest and some at random make a sandwich.

    >>> from torch import nn
    >>> from limbeck import CrossEntropy, Dataset, Slimmable, distill
    >>> student = Slimmable(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> data = Dataset(x=torch.randn(9, 4), y=torch.arange(9) % 3)
    >>> run = distill(None, student, CrossEntropy() + InPlaceKD(), data, steps=1, batch=8)
    >>> sorted(next(iter(run)).losses)
    ['cross_entropy', 'inplacekd']
    """

    temperature: float = 1.0
    tasks: tuple[int, ...] = ()
    teacher: str = "student"

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero("temperature", self.temperature)

    def check(self, cast: Cast) -> None:
        super().check(cast)
        cast.need_network(self.teacher, by=self)

    def value(self, seen: Seen, tick: Tick) -> Tensor:
        assert seen.out is not None
        pairs = zip(
            by_task(seen.out, self.tasks, self), by_task(logits(tick, self.teacher), self.tasks, self), strict=True
        )
        return torch.stack([soft_kl(s, t, temperature=self.temperature) for s, t in pairs]).mean(0)


def turned(one: Tensor, other: Tensor) -> Tensor:
    """1 − cos(a, b) of all numbers of each example, [B].

    Args:
        one: features a, [B, …].
        other: features b, of the same shape.

    >>> turned(torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0, 0.0]]))
    tensor([1.])
    """
    return 1 - F.cosine_similarity(one.flatten(1), other.flatten(1))


@dataclass(frozen=True, kw_only=True)
class WidthInvariance(AtWidths):
    """Configuration-invariant distillation: 1 − cos(n, f), n the features of a narrow pass, f those at full width.

    A narrow pass has the first channels alone, and these are compared; f does not move. Σ over taps. Lengths are left
    out: a narrow pass that lacks inputs makes up for them by larger weights, which are the full width's too, and
    without norms both would grow for ever.

    Args: those of `AtWidths`.
        taps: of the student, between layers; names, see `tap`.

    Raises:
        BadSetting: no taps.
        Incompatible: no such taps, a student that is not slimmable, no inputs x.

    Source: Aich et al. 2023, arXiv 2308.11744, for the aim that features be those of any width; the distance is ours.

    >>> from torch import nn
    >>> from limbeck import CrossEntropy, Dataset, Slimmable, distill
    >>> student = Slimmable(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> data = Dataset(x=torch.randn(9, 4))
    >>> run = distill(None, student, WidthInvariance(taps=("layers.1",)), data, steps=1, batch=8)
    >>> sorted(next(iter(run)).losses)
    ['widthinvariance']
    """

    taps: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.taps:
            raise BadSetting("WidthInvariance needs taps of the student, such as taps=('encoder.layers.1',).")

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        one_each(cast.tap("student", *self.taps, by=self), self.taps, by=self)
        return super().terms(cast)

    def value(self, seen: Seen, tick: Tick) -> Tensor:
        full = tick.answer("student").detached().features
        pairs = [(wide(seen.features[name]), wide(full[name])) for name in self.taps]
        parts = [turned(n, f[:, : n.shape[1]]) for n, f in pairs]
        return sum(parts[1:], parts[0])


__all__ = ["AtWidths", "InPlaceKD", "WidthCrossEntropy", "WidthInvariance", "task_cross_entropy", "turned"]
