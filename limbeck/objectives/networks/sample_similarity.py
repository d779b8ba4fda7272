"""Similarity of two networks of any widths on one batch: how examples relate, and how the gradients of classes do."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from limbeck.engine.tick import Tick
from limbeck.objectives.networks.logits import hard_labels, logits
from limbeck.objectives.networks.relations import Relational


def cosine_gram(x: Tensor) -> Tensor:
    """x_i·x_j/(‖x_i‖·‖x_j‖) of all pairs of rows, [N, N]: no scale of a row and no rotation of all changes it.

    Args:
        x: rows, [N, …].

    >>> import torch
    >>> cosine_gram(torch.tensor([[3.0, 0.0], [2.0, 2.0]]))
    tensor([[1.0000, 0.7071],
            [0.7071, 1.0000]])
    """
    rows = F.normalize(x.flatten(1), dim=1)
    return rows @ rows.mT


def gram_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """mean (G(s) − G(t))² of `cosine_gram`, over pairs of rows, [].

    Args:
        student: rows, [N, …].
        teacher: rows, [N, …], of other lengths if need be; no gradient flows to them.

    >>> import torch
    >>> gram_gap(torch.eye(2), torch.ones(2, 3))
    tensor(0.5000)
    """
    return (cosine_gram(student) - cosine_gram(teacher.detach())).square().mean()


def class_gradients(features: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """∂CE/∂W = (softmax(z) − e_y)ᵀ·a/B of a last layer z = W·a + b, a row for each class, [C, D].

    Args:
        features: what goes into the last layer, a, [B, D].
        logits: what comes out of it, z, [B, C].
        labels: classes y, [B].

    >>> import torch
    >>> class_gradients(torch.ones(1, 1), torch.zeros(1, 2), torch.tensor([0]))
    tensor([[-0.5000],
            [ 0.5000]])
    """
    off = logits.softmax(1) - F.one_hot(labels, logits.shape[1])
    return off.mT.to(features) @ features / len(features)


@dataclass(frozen=True, kw_only=True)
class SampleSimilarity(Relational):
    """`gram_gap` of the examples' features: how alike the images of a batch are to either network.

    Args: those of `Relational`.

    Raises:
        BadSetting: no pairs.
        Incompatible: no such taps, a batch of one or that is cut.

    Source: the relation metric of DisWOT, Dong et al. 2023, arXiv 2303.15678, whose code takes rows of products of
    features to length 1 in the place of cosines (Tung & Mori 2019, arXiv 1907.09682).

    >>> import torch
    >>> from torch import nn
    >>> from limbeck import Dataset, distill
    >>> teacher = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> student = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> data = Dataset(x=torch.randn(9, 4))
    >>> run = distill(teacher, student, SampleSimilarity(pairs={"1": "1"}), data, steps=1, batch=8)
    >>> sorted(next(iter(run)).losses)
    ['samplesimilarity']
    """

    def value(self, student: Tensor, teacher: Tensor, tick: Tick) -> Tensor:
        return gram_gap(*self.rows(student, teacher))


@dataclass(frozen=True, kw_only=True)
class ClassSimilarity(Relational):
    """`gram_gap` of `class_gradients`: which classes use a last layer's inputs alike, in either network.

    Args: those of `Relational`; pairs are what goes into the last layers, ``{"head:in": "fc:in"}``.

    Raises:
        BadSetting: no pairs.
        Incompatible: no such taps, a batch that is cut, no labels that are classes.

    Source: the semantic metric of DisWOT, Dong et al. 2023, arXiv 2303.15678. The authors' code compares products of
    channels class by class, which needs networks of one width; here rows are classes, for any widths.

    >>> import torch
    >>> from torch import nn
    >>> from limbeck import Dataset, distill
    >>> teacher = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> student = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> data = Dataset(x=torch.randn(9, 4), y=torch.arange(9) % 3)
    >>> run = distill(teacher, student, ClassSimilarity(pairs={"2:in": "2:in"}), data, steps=1, batch=8)
    >>> sorted(next(iter(run)).losses)
    ['classsimilarity']
    """

    least: ClassVar[int] = 1

    @property
    def fields(self) -> tuple[str, ...]:
        return ("x", "y")

    def value(self, student: Tensor, teacher: Tensor, tick: Tick) -> Tensor:
        labels, sides = hard_labels(tick.batch, self), self.rows(student, teacher)
        pairs = zip(sides, (self.student, self.teacher), strict=True)
        return gram_gap(*(class_gradients(side, logits(tick, who), labels) for side, who in pairs))


__all__ = ["ClassSimilarity", "SampleSimilarity", "class_gradients", "cosine_gram", "gram_gap"]
