"""What of a teacher helps a student of its own kind: its confidence as a weight, or its dark knowledge shuffled."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.engine.objective import Loss
from limbeck.engine.tick import Tick
from limbeck.objectives.networks.logits import OnLogits, hard_labels


def confidence_weights(teacher: Tensor) -> Tensor:
    """max_c p_ic/Σ_j max_c p_jc: how much each example counts by the teacher's confidence; they sum to 1, [B].

    Args:
        teacher: logits, [B, C].

    Source: Furlanello et al. 2018, arXiv 1805.04770.

    >>> confidence_weights(torch.zeros(4, 3))
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    most = teacher.detach().softmax(1).amax(1)
    return most / most.sum()


@dataclass(frozen=True, kw_only=True)
class ConfidenceWeighted(OnLogits):
    """Cross-entropy on labels, each example weighed by `confidence_weights`: the teacher says nothing of other classes.

    Raises:
        Incompatible: no teacher, no inputs x or labels y.

    Source: CWTM, Furlanello et al. 2018, arXiv 1805.04770.

    >>> from torch import nn
    >>> from limbeck import Dataset, distill
    >>> data = Dataset(x=torch.randn(9, 4), y=torch.arange(9) % 3)
    >>> run = distill(nn.Linear(4, 3), nn.Linear(4, 3), ConfidenceWeighted(), data, steps=1, batch=8)
    >>> sorted(next(iter(run)).losses)
    ['confidenceweighted']
    """

    @property
    def fields(self) -> tuple[str, ...]:
        return ("x", "y")

    def value(self, student: Tensor, teacher: Tensor, tick: Tick) -> Loss:
        y = hard_labels(tick.batch, by=self)
        # not `confidence_weights`: the loop divides by the sum over all of the tick, of whatever micro-batches
        return Loss(F.cross_entropy(student, y, reduction="none"), weight=teacher.softmax(1).amax(1))


def permuted(p: Tensor, scores: Tensor) -> Tensor:
    """Probabilities whose greatest stays where it is, all others in another order, shape of p.

    Args:
        p: [B, C].
        scores: random numbers, [B, C], whose ranks say which goes where.

    Source: DKPP, Furlanello et al. 2018, arXiv 1805.04770.

    >>> permuted(torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.0, 2.0, 1.0]]))
    tensor([[0.7000, 0.1000, 0.2000]])
    """
    first = p.argmax(1, keepdim=True)
    places = torch.arange(p.shape[1], device=p.device).expand_as(p)
    rest = places[places != first].view(len(p), -1)
    order = scores.gather(1, rest).argsort(1)
    return p.scatter(1, rest, p.gather(1, rest).gather(1, order))


@dataclass(frozen=True, kw_only=True)
class PermutedTeacher(OnLogits):
    """Cross-entropy to the teacher's probabilities, `permuted` anew for each example: they say how sure it is, no more.

    Raises:
        Incompatible: no teacher, no inputs x.

    Source: DKPP, Furlanello et al. 2018, arXiv 1805.04770.

    >>> from torch import nn
    >>> from limbeck import Dataset, distill
    >>> data = Dataset(x=torch.randn(9, 4))
    >>> run = distill(nn.Linear(4, 3), nn.Linear(4, 3), PermutedTeacher(), data, steps=1, batch=8)
    >>> sorted(next(iter(run)).losses)
    ['permutedteacher']
    """

    def value(self, student: Tensor, teacher: Tensor, tick: Tick) -> Tensor:
        p = teacher.softmax(1)
        scores = tick.rng((self, "order")).uniform(*p.shape)
        return -(permuted(p, scores) * student.log_softmax(1)).sum(1)


__all__ = ["ConfidenceWeighted", "PermutedTeacher", "confidence_weights", "permuted"]
