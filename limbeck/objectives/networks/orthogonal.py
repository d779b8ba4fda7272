"""V_kD: features are rotated, not fitted, to the teacher's, whose channels are normalised as the task wants it."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.engine.tick import Tick
from limbeck.objectives.networks.features import OnFeatures
from limbeck.objectives.networks.perception import perceived
from limbeck.objectives.networks.projectors import Orthogonal, Projector


def rows(x: Tensor) -> Tensor:
    """Features at all places of all examples, one under the other, [rows, C].

    Args:
        x: [B, C], tokens [B, N, C] or maps [B, C, H, W].

    >>> rows(torch.ones(2, 8, 4, 4)).shape
    torch.Size([32, 8])
    """
    return (x.movedim(1, -1) if x.dim() == 4 else x).flatten(0, -2)


def whitened(x: Tensor, *, eps: float = 1e-3) -> Tensor:
    """(x − μ)·(Σ + eps)^{−½}: channels are uncorrelated with variance 1, turned as little as can be, [N, C].

    Args:
        x: [N, C].
        eps: added to the variances, which divide by N, in every direction.

    >>> x = torch.randn(100, 3) @ torch.tensor([[2.0, 1, 0], [0, 1, 0], [0, 0, 3]])
    >>> bool(torch.allclose(torch.cov(whitened(x, eps=1e-6).T, correction=0), torch.eye(3), atol=1e-3))
    True
    """
    centred = x - x.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(x))
    return centred @ (vectors * (values.clamp_min(0) + eps).rsqrt()) @ vectors.T


@dataclass(frozen=True, kw_only=True)
class VkD(OnFeatures):
    """Smooth L1 distance of turned features of the student to normalised ones of the teacher, mean over all numbers.

    The projector is `Orthogonal`: it keeps inner products, so that what the student should learn about how examples
    lie to each other is not learned by the projector. Statistics of the teacher are those of the batch.

    Args: those of `OnFeatures`.
        whiten: channels of the teacher are `whitened`, for tasks that create; otherwise each has mean 0 and
            variance 1, for tasks that tell apart.

    Raises:
        BadSetting: no pairs.
        Incompatible: no such taps, more channels than the teacher has, no data with x, a batch that is cut.

    Source: Miles et al. 2024, arXiv 2403.06213; the authors add it to the loss of the task.

    >>> from torch import nn
    >>> from limbeck import Dataset, distill
    >>> teacher = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> student = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> run = distill(teacher, student, VkD(pairs={"1": "1"}), Dataset(x=torch.randn(9, 4)), steps=1, batch=8)
    >>> sorted(next(iter(run)).losses)
    ['vkd']
    """

    coupled: ClassVar[bool] = True
    projector: Projector = field(default_factory=Orthogonal)
    whiten: bool = False

    def value(self, student: Tensor, teacher: Tensor, tick: Tick) -> Tensor:
        known = rows(teacher)
        return F.smooth_l1_loss(rows(student), whitened(known) if self.whiten else perceived(known))


__all__ = ["VkD", "rows", "whitened"]
