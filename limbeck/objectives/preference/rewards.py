"""What is preferred: functions of samples and conditions, higher is better, as settings that a recipe can name."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from limbeck.errors import in_range
from limbeck.tree import Tree


class Preference(ABC):
    """(x, cond) → [B], higher is better. A subclass is a frozen keyword-only dataclass; a user's own is one too.

    Where it has a gradient by x it can be climbed (`Reward`); where it has none it can still rank pairs.
    """

    @abstractmethod
    def __call__(self, x: Tensor, cond: Tree) -> Tensor:
        """The preference of each sample, [B].

        Args:
            x: samples, [B, …].
            cond: their conditions.
        """


@dataclass(frozen=True, kw_only=True)
class Direction(Preference):
    """r = a·x, over the first numbers of the flattened sample: the more along a, the better.

    Tilting N(μ, Σ) by exp(r/β) gives N(μ + Σa/β, Σ).

    Args:
        along: a; numbers that it does not name weigh nothing.

    >>> import torch
    >>> Direction(along=(2.0,))(torch.tensor([[1.0, 5.0], [-1.0, 5.0]]), None)
    tensor([ 2., -2.])
    """

    along: tuple[float, ...] = (1.0,)

    def __call__(self, x: Tensor, cond: Tree) -> Tensor:
        a = x.new_tensor(self.along)
        return x.flatten(1)[:, : len(a)] @ a


@dataclass(frozen=True, kw_only=True)
class Nearness(Preference):
    """r = −‖x − c‖²/(2·scale²), over the first numbers of the flattened sample.

    Args:
        to: c.
        scale: where the reward falls by ½.

    Raises:
        BadSetting: a scale that is not positive.

    >>> import torch
    >>> Nearness(to=(1.0, 1.0))(torch.tensor([[1.0, 1.0], [1.0, 3.0]]), None)
    tensor([-0., -2.])
    """

    to: tuple[float, ...] = (0.0,)
    scale: float = 1.0

    def __post_init__(self) -> None:
        in_range("scale", self.scale, 1e-9)

    def __call__(self, x: Tensor, cond: Tree) -> Tensor:
        c = x.new_tensor(self.to)
        return -((x.flatten(1)[:, : len(c)] - c) ** 2).sum(1) / (2 * self.scale**2)


@dataclass(frozen=True, kw_only=True)
class Region(Preference):
    """1 where a·x ≥ least and 0 elsewhere: a bonus without a slope, which can rank but not be climbed.

    Args:
        along: a, over the first numbers of the flattened sample.
        least: where the bonus begins.

    >>> import torch
    >>> Region(along=(1.0,), least=0.5)(torch.tensor([[0.4, 9.0], [0.6, -9.0]]), None)
    tensor([0., 1.])
    """

    along: tuple[float, ...] = (1.0,)
    least: float = 0.0

    def __call__(self, x: Tensor, cond: Tree) -> Tensor:
        return (Direction(along=self.along)(x, cond) >= self.least).to(x)


__all__ = ["Direction", "Nearness", "Preference", "Region"]
