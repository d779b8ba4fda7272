"""Plackett-Luce distillation: the student is to rank classes as label and teacher do."""

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.engine.tick import Tick
from limbeck.errors import above_zero
from limbeck.objectives.networks.logits import OnLogits, hard_labels


def plackett_luce(student: Tensor, teacher: Tensor, y: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Σ_k a_k·(ln Σ_{l≥k} exp s_{π_l} − s_{π_k}), a_k = softmax(t/T)_{π_k}, [B].

    π is the label first, then all other classes from the teacher's most to its least likely. It is convex in s; with a
    teacher that is sure of the label it is cross-entropy.

    Args:
        student: logits s, [B, C].
        teacher: logits t, [B, C]; no gradient flows to them.
        y: labels, [B].
        temperature: T.

    Source: PLD, Bassam, Zhu & Bian 2025, arXiv 2506.12542.

    >>> plackett_luce(torch.zeros(1, 3), torch.tensor([[99.0, 0.0, 0.0]]), torch.tensor([0]))
    tensor([1.0986])
    """
    t = teacher.detach()
    order = t.scatter(1, y[:, None], torch.inf).sort(dim=1, descending=True, stable=True).indices
    s, a = student.gather(1, order), (t / temperature).softmax(1).gather(1, order)
    left = s.flip(1).logcumsumexp(1).flip(1)  # ln Σ over a class and all after it
    return (a * (left - s)).sum(1)


@dataclass(frozen=True, kw_only=True)
class PLD(OnLogits):
    """`plackett_luce`: a ranking loss that takes the place of cross-entropy and needs no weight beside it.

    Args:
        temperature: T, of the teacher's confidence.

    Raises:
        BadSetting: a temperature that is not above 0.
        Incompatible: no teacher, no inputs x or labels y.

    Source: PLD, Bassam, Zhu & Bian 2025, arXiv 2506.12542.

    >>> from torch import nn
    >>> from limbeck import Dataset, distill
    >>> data = Dataset(x=torch.randn(9, 4), y=torch.arange(9) % 3)
    >>> sorted(next(iter(distill(nn.Linear(4, 3), nn.Linear(4, 3), PLD(), data, steps=1, batch=8))).losses)
    ['pld']
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        above_zero("temperature", self.temperature)

    @property
    def fields(self) -> tuple[str, ...]:
        return ("x", "y")

    def value(self, student: Tensor, teacher: Tensor, tick: Tick) -> Tensor:
        return plackett_luce(student, teacher, hard_labels(tick.batch, by=self), temperature=self.temperature)


__all__ = ["PLD", "plackett_luce"]
