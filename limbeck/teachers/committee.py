"""Several teachers as one, each weighed by how much its features have to do with the task at hand."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import BadSetting, in_range


def ranks(x: Tensor) -> Tensor:
    """Ranks of numbers from 0, equal ones sharing the mean of theirs, float64 [N].

    >>> ranks(torch.tensor([5.0, 1.0, 5.0]))
    tensor([1.5000, 0.0000, 1.5000], dtype=torch.float64)
    """
    _, which, counts = x.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    return (last - (counts + 1) / 2.0).double()[which]


def task_similarity(features: Tensor, y: Tensor) -> float:
    """How alike examples are by features and by labels: Spearman's correlation of both over all pairs, in [−1, 1].

    Pairs are as alike as the Pearson correlation of their features, or of their one-hot labels, says.

    Args:
        features: [N, D].
        y: labels, [N].

    Raises:
        BadSetting: fewer than three examples, or labels that are all equal.

    Source: PARC, Bolya et al. 2021, arXiv 2111.06977, as Borup et al. 2023, arXiv 2304.12314, use it.

    >>> round(task_similarity(torch.eye(3)[[0, 0, 1, 1, 2]], torch.tensor([0, 0, 1, 1, 2])), 6)
    1.0
    """
    if len(y) < 3 or len(y.unique()) < 2:
        raise BadSetting(f"a similarity needs three or more examples of two or more classes, got {len(y)}.")
    same = (y[:, None] == y[None]).double()  # what the correlation of one-hot labels is ordered by
    alike = torch.corrcoef(features.double().flatten(1))
    i, j = torch.tril_indices(len(y), len(y), offset=-1)
    both = torch.stack([ranks(alike[i, j].nan_to_num()), ranks(same[i, j])])
    return torch.corrcoef(both)[0, 1].nan_to_num().item()


def task_weights(similarities: Sequence[float], *, power: float = 4.0) -> tuple[float, ...]:
    """max(0, ρ_s)^p/Σ_r max(0, ρ_r)^p: 0 is all alike, and ∞ would be the nearest alone.

    Raises:
        BadSetting: a negative power, or no similarity above 0.

    Source: DistillWeighted, Borup et al. 2023, arXiv 2304.12314.

    >>> task_weights([0.2, 0.1, -0.3], power=1.0)
    (0.666..., 0.333..., 0.0)
    """
    in_range("power", power, 0)
    above = [max(similarity, 0.0) for similarity in similarities]
    if not any(above):
        raise BadSetting(f"weights of teachers need a similarity above 0, got {list(similarities)}.")
    raised = [value**power if value else 0.0 for value in above]
    return tuple(value / sum(raised) for value in raised)


class Committee(nn.Module):
    """ln Σ_s w_s·softmax(z_s), [B, C], of teachers with logits z_s: KL to it and Σ_s w_s·KL have the same gradient.

    Args:
        teachers: classifiers of the same classes; those of weight 0 are not asked.
        weights: w, as many; they are made to sum to 1.

    Raises:
        BadSetting: other numbers of weights than of teachers, negative ones, or none above 0.

    >>> Committee([nn.Linear(4, 3), nn.Linear(4, 3)], (0.9, 0.1))(torch.zeros(5, 4)).exp().sum(1).round()
    tensor([1., 1., 1., 1., 1.], grad_fn=<RoundBackward0>)
    """

    def __init__(self, teachers: Sequence[nn.Module], weights: Sequence[float]):
        super().__init__()
        if len(teachers) != len(weights) or not sum(weights) > 0 or min(weights) < 0:
            need = f"a weight for each of {len(teachers)} teachers, none negative and some above 0"
            raise BadSetting(f"Committee needs {need}, got {list(weights)}.")
        self.teachers = nn.ModuleList(teachers)
        self.weights = tuple(weight / sum(weights) for weight in weights)

    def forward(self, x: Tensor) -> Tensor:
        """Logarithms of the mean probabilities, [B, C]."""
        pairs = [(one, weight) for one, weight in zip(self.teachers, self.weights, strict=True) if weight]
        said = [F.log_softmax(one(x), 1) + math.log(weight) for one, weight in pairs]
        return torch.stack(said).logsumexp(0)


__all__ = ["Committee", "ranks", "task_similarity", "task_weights"]
