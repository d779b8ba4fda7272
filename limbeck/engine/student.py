"""What learns: anything with parameters that yields differentiable samples."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from torch import Size, Tensor, nn

from limbeck.rng import Rng
from limbeck.tree import Tree

if TYPE_CHECKING:
    from limbeck.engine.tick import Tick


@dataclass(frozen=True)
class Draw:
    """Samples of a student.

    Args:
        x: the samples, [n, …].
        cond: their conditions.
        noise: what a generator made them of, [n, …].
        segment: noise levels (s, t) between which the step that made them leads, s < t.
        carry: brings noise on the student's `surface` to these samples, so that equal points get equal noise.
    """

    x: Tensor
    cond: Tree = None
    noise: Tensor | None = None
    segment: tuple[float, float] | None = None
    carry: Callable[[Tensor], Tensor] | None = None


class Student(nn.Module, ABC):
    """Anything with parameters that yields differentiable samples: particles, an image, splats, a generator."""

    @property
    def size(self) -> int | None:
        """How many different samples it has; None if it draws new ones without end."""
        return None

    @property
    def surface(self) -> Size | None:
        """The shape of noise that sticks to it; None if its samples are never the same twice."""
        return None

    @abstractmethod
    def draw(self, n: int, cond: Tree, rng: Rng) -> Draw:
        """n samples under the given conditions; a student that brings its own conditions returns those."""

    def clone(self, *, trainable: bool) -> Self:
        """A copy with its own parameters: where EMA and target students come from."""
        return copy.deepcopy(self).requires_grad_(trainable)


@dataclass(frozen=True)
class Rows:
    """How one parameter's rows change, with N rows before and M after.

    Args:
        source: the old row that each new row's optimiser moments and EMA come from, [M] integers.
        fresh: rows that start anew, with zero moments and their ``value`` as EMA, [M] booleans.
        value: the new parameter, [M, …].
    """

    source: Tensor
    fresh: Tensor
    value: Tensor


class Grows(Student):
    """A student whose parameters change shape: the student says how, the loop does it to everything that follows."""

    @abstractmethod
    def regrow(self, tick: "Tick") -> Mapping[str, Rows] | None:
        """Changes by parameter name after this tick's update, or None; ``tick.grads`` holds the tick's gradients."""

    @abstractmethod
    def resize(self, shapes: Mapping[str, Size]) -> None:
        """Makes the parameters have these shapes, so that a checkpoint written after growth can be loaded."""
