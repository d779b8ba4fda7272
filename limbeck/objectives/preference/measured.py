"""Agreement with a noisy linear measurement, as something to climb."""

from dataclasses import dataclass

from torch import Tensor

from limbeck.errors import in_range
from limbeck.objectives.preference.rewards import Preference
from limbeck.tree import Tree


@dataclass(frozen=True, kw_only=True)
class Measured(Preference):
    """r = −‖A·x − c‖²/(2s²), the log-likelihood of the condition c as a measurement of the flattened sample.

    Beside a term whose gradient is that of KL(q(x|c)‖p(x)), the optimum is the exact posterior p(x|c).

    Args:
        matrix: A, its rows.
        std: s, of the measurement's noise.

    Raises:
        BadSetting: noise that is not positive.

    Source: condition learning of JDM, Luo et al. 2025, arXiv 2503.06652, with A as the extractor of the condition.

    >>> import torch
    >>> Measured(matrix=((1.0, 1.0),))(torch.tensor([[1.0, 1.0], [1.0, 3.0]]), torch.tensor([[2.0], [2.0]]))
    tensor([-0., -2.])
    """

    matrix: tuple[tuple[float, ...], ...] = ((1.0,),)
    std: float = 1.0

    def __post_init__(self) -> None:
        in_range("std", self.std, 1e-9)

    def __call__(self, x: Tensor, cond: Tree) -> Tensor:
        away = x.flatten(1) @ x.new_tensor(self.matrix).mT - cond
        return -(away**2).sum(1) / (2 * self.std**2)


__all__ = ["Measured"]
