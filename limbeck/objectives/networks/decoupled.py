"""Decoupled knowledge distillation: what the teacher thinks of the label, and of all other classes, apart."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.engine.tick import Tick
from limbeck.errors import Incompatible, above_zero, in_range
from limbeck.objectives.networks.logits import OnLogits, hard_labels, soft_kl


def target_kl(student: Tensor, teacher: Tensor, y: Tensor, *, temperature: float = 1.0) -> Tensor:
    """T²·KL of the two probabilities (p_y, 1 − p_y), [B].

    Both logarithms come from logits, ln(p_y/(1 − p_y)) = z_y − ln Σ_{c≠y} exp z_c, so that none is of a rounded 0.

    Args:
        student: logits, [B, C].
        teacher: logits, [B, C]; no gradient flows to them.
        y: labels, [B].
        temperature: T.

    Source: DKD, Zhao et al. 2022, arXiv 2203.08679.

    >>> target_kl(torch.zeros(1, 4), torch.zeros(1, 4), torch.tensor([0]))
    tensor([0.])
    """
    odds = [_odds(z / temperature, y) for z in (student, teacher.detach())]
    return soft_kl(*(torch.stack([z, torch.zeros_like(z)], 1) for z in odds)) * temperature**2


def _odds(z: Tensor, y: Tensor) -> Tensor:
    """ln(p_y/(1 − p_y)), [B]."""
    return z.gather(1, y[:, None])[:, 0] - _others(z, y).logsumexp(1)


def _others(z: Tensor, y: Tensor) -> Tensor:
    """Logits without those of the labels, [B, C − 1]."""
    keep = F.one_hot(y, z.shape[1]) == 0
    return z[keep].view(len(z), -1)


def rest_kl(student: Tensor, teacher: Tensor, y: Tensor, *, temperature: float = 1.0) -> Tensor:
    """T²·KL of the probabilities of all classes but the label, given that it is none of it, [B].

    Args: those of `target_kl`.

    Source: DKD, arXiv 2203.08679.

    >>> rest_kl(torch.tensor([[9.0, 1.0, 2.0]]), torch.tensor([[0.0, 2.0, 3.0]]), torch.tensor([0]))
    tensor([0.])
    """
    return soft_kl(_others(student, y), _others(teacher, y), temperature=temperature)


@dataclass(frozen=True, kw_only=True)
class DKD(OnLogits):
    """α·`target_kl` + β·`rest_kl`: KD is α = 1 and β = 1 − p_y of the teacher, which hides the rest where it is sure.

    Args:
        alpha: weight of what the teacher thinks of the label.
        beta: weight of what it thinks of the rest.
        temperature: T.

    Raises:
        BadSetting: a negative weight, a temperature that is not above 0.
        Incompatible: two classes, where nothing is left beside label and rest.

    Source: Zhao et al. 2022, arXiv 2203.08679 and algorithm 1; the authors add cross-entropy, and let the weight
    grow over the first 20 epochs.

    >>> from torch import nn
    >>> from limbeck import Dataset, distill
    >>> data = Dataset(x=torch.randn(9, 4), y=torch.arange(9) % 3)
    >>> sorted(next(iter(distill(nn.Linear(4, 3), nn.Linear(4, 3), DKD(), data, steps=1, batch=8))).losses)
    ['dkd']
    """

    alpha: float = 1.0
    beta: float = 8.0
    temperature: float = 4.0

    def __post_init__(self) -> None:
        in_range("alpha", self.alpha, 0)
        in_range("beta", self.beta, 0)
        above_zero("temperature", self.temperature)

    @property
    def fields(self) -> tuple[str, ...]:
        return ("x", "y")

    def value(self, student: Tensor, teacher: Tensor, tick: Tick) -> Tensor:
        if student.shape[1] < 3:
            raise Incompatible("DKD", need="three or more classes", got=str(student.shape[1]), fit="KD()")
        y = hard_labels(tick.batch, by=self)
        label, rest = (f(student, teacher, y, temperature=self.temperature) for f in (target_kl, rest_kl))
        return self.alpha * label + self.beta * rest


__all__ = ["DKD", "rest_kl", "target_kl"]
