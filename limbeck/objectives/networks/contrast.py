"""Contrast: what a student makes of an example is to be nearer to the teacher's of the same than to those of others."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.engine.tick import Tick
from limbeck.errors import Incompatible, above_zero, in_range
from limbeck.objectives.networks.features import OnFeatures
from limbeck.objectives.networks.logits import wide


def cosines(query: Tensor, key: Tensor) -> Tensor:
    """q_i·k_j/(‖q_i‖·‖k_j‖), [..., B, M], of q [..., B, D] and k [..., M, D]; 0 where a vector is.

    >>> cosines(torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    tensor([[1., 0.]])
    """
    with torch.autocast(query.device.type, enabled=False):  # half precision would be off by more than what it compares
        return F.normalize(wide(query), dim=-1) @ F.normalize(wide(key), dim=-1).mT


def info_nce(query: Tensor, key: Tensor, *, temperature: float = 0.1, others: Tensor | None = None) -> Tensor:
    """−ln [exp(c_ii/τ)/Σ_j exp(c_ij/τ)] with the `cosines` c of q and k: which of all keys belongs to q_i, [..., B].

    ln B less its mean is at most the mutual information of q and k. Gradients flow to both.

    Args:
        query: q, [..., B, D].
        key: k, [..., B, D]; k_i belongs to q_i, and all others are its negatives.
        temperature: τ.
        others: further negatives, [..., M, D], the same for every q_i; or [..., B, M, D], its own for each.

    Source: van den Oord et al. 2018, arXiv 1807.03748, with cosines.

    >>> info_nce(torch.eye(3), torch.eye(3), temperature=0.01).sum() < 1e-6
    tensor(True)
    """
    found = cosines(query, key)
    logits = found
    if others is not None and others.dim() == query.dim():
        logits = torch.cat([found, cosines(query, others)], -1)
    elif others is not None:
        logits = torch.cat([found, cosines(query[..., None, :], others)[..., 0, :]], -1)
    return logits.div(temperature).logsumexp(-1) - found.diagonal(dim1=-2, dim2=-1) / temperature


def noise_contrast(query: Tensor, key: Tensor, *, temperature: float = 0.1, examples: int = 1024) -> Tensor:
    """−ln h_ii − Σ_{j≠i} ln(1 − h_ij), h = e^(c/τ)/(e^(c/τ) + N/M) with `cosines` c, N = B − 1 negatives, [B].

    h is a guess whether q and k are of one example, which N of N + 1 pairs here are not.

    Args:
        query: q, [B, D].
        key: k, [B, D].
        temperature: τ.
        examples: M, how many the data have.

    Source: CRD, Tian et al. 2019, arXiv 1910.10699; negatives are the rest of the batch instead of a memory's.

    >>> noise_contrast(torch.eye(2), torch.eye(2), temperature=0.01, examples=10).exp()  # 1/(1 − h) = 1 + M/N
    tensor([11.0000, 11.0000])
    """
    n = len(query) - 1
    logits = cosines(query, key) / temperature - math.log(max(n, 1e-30) / examples)
    same = torch.eye(len(query), dtype=torch.bool, device=query.device)
    return F.softplus(torch.where(same, -logits, logits)).sum(1)


def pairs_of(x: Tensor, by: object) -> Tensor:
    """Features of each example as one vector, [B, D].

    Raises:
        Incompatible: fewer than two examples, which have nothing to be compared with.
    """
    if len(x) < 2:
        raise Incompatible(type(by).__name__, need="a batch of two or more examples", got=str(len(x)), fit="batch=64")
    return x.flatten(1)


@dataclass(frozen=True, kw_only=True)
class Contrast(OnFeatures):
    """`info_nce` between projected features of the student and the teacher's, with the batch as negatives.

    Args: those of `OnFeatures`.
        temperature: τ.

    Raises:
        BadSetting: no pairs, a temperature that is not above 0.
        Incompatible: no such taps, features that the projector cannot bring together, a batch of one or that is cut.

    Source: van den Oord et al. 2018, arXiv 1807.03748, for the loss; Tian et al. 2019, arXiv 1910.10699, for the use.
    There both networks have a projection head, here the student alone.

    >>> from torch import nn
    >>> from limbeck import Dataset, distill
    >>> teacher = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> student = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> run = distill(teacher, student, Contrast(pairs={"1": "1"}), Dataset(x=torch.randn(9, 4)), steps=1, batch=8)
    >>> sorted(next(iter(run)).losses)
    ['contrast']
    """

    coupled: ClassVar[bool] = True
    temperature: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero("temperature", self.temperature)

    def value(self, student: Tensor, teacher: Tensor, tick: Tick) -> Tensor:
        s, t = (pairs_of(x, by=self) for x in (student, teacher))
        return info_nce(s, t, temperature=self.temperature).mean()


@dataclass(frozen=True, kw_only=True)
class CRD(OnFeatures):
    """Contrastive representation distillation: `noise_contrast` of projected features of the student and the teacher's.

    Args: those of `OnFeatures`.
        temperature: τ.
        examples: M, how many the data have.

    Raises:
        BadSetting: no pairs, a temperature that is not above 0, fewer than one example.
        Incompatible: no such taps, features that the projector cannot bring together, a batch of one or that is cut.

    Source: Tian et al. 2019, arXiv 1910.10699, where negatives come from a memory and both networks are projected.

    >>> from torch import nn
    >>> from limbeck import Dataset, distill
    >>> teacher = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> student = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> run = distill(teacher, student, CRD(pairs={"1": "1"}), Dataset(x=torch.randn(9, 4)), steps=1, batch=8)
    >>> sorted(next(iter(run)).losses)
    ['crd']
    """

    coupled: ClassVar[bool] = True
    temperature: float = 0.1
    examples: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero("temperature", self.temperature)
        in_range("examples", self.examples, 1)

    def value(self, student: Tensor, teacher: Tensor, tick: Tick) -> Tensor:
        s, t = (pairs_of(x, by=self) for x in (student, teacher))
        return noise_contrast(s, t, temperature=self.temperature, examples=self.examples).mean()


__all__ = ["CRD", "Contrast", "cosines", "info_nce", "noise_contrast", "pairs_of"]
