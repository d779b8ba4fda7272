"""Sinkhorn distillation: the batch of the student's predictions is carried to the teacher's as cheaply as can be."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from limbeck.engine.tick import Tick
from limbeck.errors import above_zero, in_range
from limbeck.objectives.networks.logits import OnLogits


def sinkhorn(cost: Tensor, *, blur: float = 0.1, rounds: int = 20) -> Tensor:
    """The plan P = diag(u)·exp(−cost/blur)·diag(v) whose rows sum to 1/N and columns to 1/M, in logarithms, [N, M].

    Args:
        cost: of carrying one to another, [N, M].
        blur: weight of the plan's entropy, in units of the cost.
        rounds: normalisations of rows and columns; columns come last and are exact.

    Source: Cuturi 2013, arXiv 1306.0895.

    >>> sinkhorn(torch.tensor([[0.0, 9.0], [9.0, 0.0]])).round(decimals=4)
    tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]])
    """
    plan = -cost / blur
    n, m = plan.shape
    for _ in range(rounds):
        plan = plan - plan.logsumexp(1, keepdim=True) - math.log(n)
        plan = plan - plan.logsumexp(0, keepdim=True) - math.log(m)
    return plan.exp()


def sinkhorn_distance(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, blur: float = 0.1, rounds: int = 20
) -> Tensor:
    """⟨P, W⟩, W_ij = ‖p_i^t − p_j^s‖₁ at temperature T, P the `sinkhorn` plan for W, [].

    Args:
        student: logits, [B, C].
        teacher: logits, [B, C]; no gradient flows to them.
        temperature: T.
        blur: see `sinkhorn`.
        rounds: see `sinkhorn`.

    Source: SinKD, Cui et al. 2024, arXiv 2402.17110; marginals are 1/B here (1 in the released code, which
    is B times as long and has T = 2 whatever it is told).

    >>> sinkhorn_distance(torch.zeros(2, 3), torch.zeros(2, 3))
    tensor(0.)
    """
    p, q = ((z / temperature).softmax(1) for z in (teacher.detach(), student))
    cost = torch.cdist(p, q, p=1)
    return (sinkhorn(cost, blur=blur, rounds=rounds) * cost).sum()


@dataclass(frozen=True, kw_only=True)
class SinKD(OnLogits):
    """`sinkhorn_distance` of a batch of the student's predictions to that of the teacher's.

    Args:
        temperature: T.
        blur: weight of the plan's entropy.
        rounds: of Sinkhorn's normalisations.

    Raises:
        BadSetting: a temperature or blur that is not above 0, no rounds.
        Incompatible: no teacher, no inputs x, a batch that is cut.

    Source: Cui et al. 2024, arXiv 2402.17110; the authors add it to cross-entropy and KD.

    >>> from torch import nn
    >>> from limbeck import Dataset, distill
    >>> data = Dataset(x=torch.randn(9, 4))
    >>> sorted(next(iter(distill(nn.Linear(4, 3), nn.Linear(4, 3), SinKD(), data, steps=1, batch=8))).losses)
    ['sinkd']
    """

    coupled: ClassVar[bool] = True
    temperature: float = 2.0
    blur: float = 0.1
    rounds: int = 20

    def __post_init__(self) -> None:
        above_zero("temperature", self.temperature)
        above_zero("blur", self.blur)
        in_range("rounds", self.rounds, 1)

    def value(self, student: Tensor, teacher: Tensor, tick: Tick) -> Tensor:
        return sinkhorn_distance(student, teacher, temperature=self.temperature, blur=self.blur, rounds=self.rounds)


__all__ = ["SinKD", "sinkhorn", "sinkhorn_distance"]
