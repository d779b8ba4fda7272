"""Relations of examples: distances, angles and similarities within a batch, which features of any widths have."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.engine.tick import Tick
from limbeck.errors import BadSetting, Incompatible, in_range
from limbeck.objectives.networks.features import OnFeatures
from limbeck.objectives.networks.projectors import Projector, Unchanged


def relative_distances(x: Tensor) -> Tensor:
    """‖x_i − x_j‖ over its mean of all pairs i ≠ j, [B, B].

    Args:
        x: features, [B, D].

    Source: Park et al. 2019, arXiv 1904.05068.

    >>> relative_distances(torch.tensor([[0.0], [3.0]]))
    tensor([[0., 1.],
            [1., 0.]])
    """
    apart = _Distances.apply(x)
    return apart * (len(x) * (len(x) - 1) / apart.sum().clamp_min(1e-12))


class _Distances(torch.autograd.Function):
    """‖x_i − x_j‖ by products; x and the distances are all that is held for its gradient Σ_j w_ij·(x_i − x_j)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        centred = x - x.mean(0)  # products of small numbers lose less of a difference
        gram = centred @ centred.mT
        size = gram.diagonal().clone()
        apart = gram.mul_(-2).add_(size).add_(size[:, None]).clamp_min_(1e-12).sqrt_().fill_diagonal_(0)
        ctx.save_for_backward(x, apart)
        return apart

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x, apart = ctx.saved_tensors
        weight = grads[0] / apart.masked_fill(apart <= 1e-6, torch.inf)  # of two that are one: 0
        weight = weight + weight.mT
        return (weight.sum(1).diag() - weight) @ (x - x.mean(0))


def angles(x: Tensor) -> Tensor:
    """cos ∠(x_i, x_j, x_k), the angle at x_j, [j, i, k]; 0 where two of them are one.

    Args:
        x: features, [B, D].

    Source: Park et al. 2019, arXiv 1904.05068.

    >>> angles(torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]]))[1, 0, 2]
    tensor(0.)
    """
    way = F.normalize(x[None] - x[:, None], dim=2)
    return way @ way.mT


def relational(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Means of Huber's h of differences of `relative_distances`, over pairs, and of `angles`, over triples, [] each.

    h(d) = d²/2 where |d| ≤ 1, |d| − ½ elsewhere; pairs and triples are of different examples.

    Args:
        student: features, [B, D].
        teacher: features, [B, D']; no gradient flows to them.

    Source: RKD, Park et al. 2019, arXiv 1904.05068, whose code also counts pairs and triples of one example, which are
    0: it gives (n − 1)/n of the first and (n − 1)(n − 2)/n² of the second.

    >>> x = torch.eye(3)
    >>> relational(x, 2 * x)
    (tensor(0.), tensor(0.))
    """
    return _apart(student, teacher.detach()), _turned(student, teacher.detach())


def _apart(student: Tensor, teacher: Tensor) -> Tensor:
    n = len(student)
    return F.smooth_l1_loss(relative_distances(student), relative_distances(teacher), reduction="sum") / (n * (n - 1))


def _turned(student: Tensor, teacher: Tensor) -> Tensor:
    n = len(student)
    turned = F.smooth_l1_loss(angles(student), angles(teacher), reduction="none")
    ends = ~torch.eye(n, dtype=torch.bool, device=student.device)  # cos is 1 at i = k whatever the features
    return (turned * ends).sum() / (n * (n - 1) * (n - 2))


def cka(x: Tensor, y: Tensor) -> Tensor:
    """Linear centred kernel alignment ⟨K, L⟩/(‖K‖·‖L‖), K = HXXᵀH, L = HYYᵀH, H = 1 − 11ᵀ/B, in [0, 1], [].

    Orthogonal maps, shifts and a scale of either side do not change it; features of no variance have 0.

    Args:
        x: features, [B, D].
        y: features, [B, D'].

    Source: Kornblith et al. 2019, arXiv 1905.00414.

    >>> x = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 3.0]])
    >>> bool((cka(x, 5 * x + 1) - 1).abs() < 1e-6)
    True
    """
    grams = ((centred := side - side.mean(0)) @ centred.T for side in (x, y))
    k, l = (F.normalize(gram.flatten(), dim=0) for gram in grams)  # noqa: E741, as the paper has it
    return k @ l


@dataclass(frozen=True, kw_only=True)
class Relational(OnFeatures):
    """A loss of relations within a batch, for features of any widths, maps and tokens as vectors. A subclass compares.

    Args: those of `OnFeatures`; features are left as they are.
    """

    coupled: ClassVar[bool] = True
    least: ClassVar[int] = 2
    """How many examples have a relation."""
    projector: Projector = field(default_factory=Unchanged)

    def rows(self, *sides: Tensor) -> tuple[Tensor, ...]:
        """Features of each example as one vector.

        Raises:
            Incompatible: a batch of too few.
        """
        if (n := len(sides[0])) < self.least:
            need = f"a batch of {self.least} or more examples"
            raise Incompatible(type(self).__name__, need=need, got=str(n), fit="batch=64")
        return tuple(side.flatten(1) for side in sides)


@dataclass(frozen=True, kw_only=True)
class RKD(Relational):
    """Relational distillation: the weighted sum of `relational` distances and angles.

    Memory grows with B²·(B + D).

    Args: those of `Relational`.
        distance: weight of distances.
        angle: weight of angles.

    Raises:
        BadSetting: no pairs, weights below 0 or both 0.
        Incompatible: no such taps, a batch of fewer than three or that is cut.

    Source: Park et al. 2019, arXiv 1904.05068.

    >>> from torch import nn
    >>> from limbeck import Dataset, distill
    >>> teacher = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> student = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> run = distill(teacher, student, RKD(pairs={"1": "1"}), Dataset(x=torch.randn(9, 4)), steps=1, batch=8)
    >>> sorted(next(iter(run)).losses)
    ['rkd']
    """

    least: ClassVar[int] = 3
    distance: float = 1.0
    angle: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("distance", self.distance, 0)
        in_range("angle", self.angle, 0)
        if not self.distance + self.angle:
            raise BadSetting("RKD needs a weight above 0 for distances or angles, got 0 for both.")

    def value(self, student: Tensor, teacher: Tensor, tick: Tick) -> Tensor:
        s, t = self.rows(student, teacher)
        parts = [w * gap(s, t) for w, gap in ((self.distance, _apart), (self.angle, _turned)) if w]
        return sum(parts[1:], parts[0])


@dataclass(frozen=True, kw_only=True)
class CKA(Relational):
    """1 − `cka` of the student's features and the teacher's.

    Args: those of `Relational`.

    Raises:
        BadSetting: no pairs.
        Incompatible: no such taps, a batch of one or that is cut.

    Source: Kornblith et al. 2019, arXiv 1905.00414, who measure by it; as a loss it is ours.

    >>> from torch import nn
    >>> from limbeck import Dataset, distill
    >>> teacher = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> student = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> run = distill(teacher, student, CKA(pairs={"1": "1"}), Dataset(x=torch.randn(9, 4)), steps=1, batch=8)
    >>> sorted(next(iter(run)).losses)
    ['cka']
    """

    def value(self, student: Tensor, teacher: Tensor, tick: Tick) -> Tensor:
        return 1 - cka(*self.rows(student, teacher))


__all__ = ["CKA", "RKD", "Relational", "angles", "cka", "relational", "relative_distances"]
