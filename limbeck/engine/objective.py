"""Objectives: which losses train whom. They add, they scale, and nothing is averaged away."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import Tensor

from limbeck.engine.schedule import Schedule, value_at
from limbeck.errors import in_range

if TYPE_CHECKING:
    from limbeck.engine.roles import Cast
    from limbeck.engine.tick import Tick


@dataclass(frozen=True)
class Loss:
    """A per-example loss; the loop takes Σ value·weight / Σ weight over all micro-batches and ranks.

    Args:
        value: [B]; or [] for a loss that couples the batch, whose term says ``coupled``.
        weight: [B], not negative; None for ones.
    """

    value: Tensor
    weight: Tensor | None = None


@dataclass(frozen=True)
class Term:
    """One loss and the roles it trains.

    Args:
        name: of the loss, in metrics.
        trains: the role or roles that it trains.
        loss: Tick → Loss; or → the parts of a sum one after the other, each of which frees its graph before the next.
        every: it is due at every that-manyth tick; ticks, never micro-batches.
        weight: a number, or a schedule over the run.
        key: terms with equal keys are one term, so two objectives can share a critic and its loss.
        coupled: the loss couples the examples of a batch and cannot be accumulated over micro-batches.
        of: the objective that it belongs to, which orders terms of equal names.
    """

    name: str
    trains: str | tuple[str, ...]
    loss: "Callable[[Tick], Loss | Iterator[Loss]]"
    every: int = 1
    weight: float | Schedule = 1.0
    key: Hashable = None
    coupled: bool = False
    of: object = field(default=None, compare=False)

    def __post_init__(self) -> None:
        in_range("every", self.every, 1)

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles it trains, as a tuple."""
        return (self.trains,) if isinstance(self.trains, str) else self.trains

    @property
    def stem(self) -> str:
        """Its name without the number that tells it from others of that name."""
        return self.name.partition("#")[0]

    def due(self, i: int, progress: float) -> bool:
        """Whether it is due at tick i, counted from 0: at the end of each period, and unless its weight is zero."""
        return (i + 1) % self.every == 0 and value_at(self.weight, progress) != 0


class Objective(ABC):
    """How a student is compared with what it should be. A subclass is a frozen keyword-only dataclass.

    Objectives add (``Consistency() + 0.3 * DMD()``), and a factor scales the losses of students only.
    """

    def check(self, cast: "Cast") -> None:  # noqa: B027, most objectives fit whatever their roles accept
        """Raises `Incompatible` if these parts cannot work together; called before step 0."""

    @abstractmethod
    def terms(self, cast: "Cast") -> tuple[Term, ...]:
        """The losses, and whom they train; asks the cast for the roles it needs."""

    def __add__(self, other: "Objective") -> "Objective":
        return Sum(parts=(*parts_of(self), *parts_of(other)))

    def __rmul__(self, weight: float | Schedule) -> "Objective":
        return Scaled(objective=self, weight=weight)

    __mul__ = __rmul__


@dataclass(frozen=True, kw_only=True)
class Sum(Objective):
    """Several objectives at once: their terms, side by side, in any order to the same bits."""

    parts: tuple[Objective, ...]

    def check(self, cast: "Cast") -> None:
        for part in self.parts:
            part.check(cast)

    def terms(self, cast: "Cast") -> tuple[Term, ...]:
        return tuple(term for part in self.parts for term in part.terms(cast))


@dataclass(frozen=True, kw_only=True)
class Scaled(Objective):
    """An objective whose losses for students are multiplied by a weight; its critics learn as before."""

    objective: Objective
    weight: float | Schedule

    def __post_init__(self) -> None:
        if not isinstance(self.weight, Schedule):
            in_range("weight", self.weight, 0)

    def check(self, cast: "Cast") -> None:
        self.objective.check(cast)

    def terms(self, cast: "Cast") -> tuple[Term, ...]:
        return tuple(
            replace(term, weight=term.weight * self.weight) if set(term.roles) & set(cast.students) else term
            for term in self.objective.terms(cast)
        )


def parts_of(objective: Objective) -> tuple[Objective, ...]:
    """The summands of a sum; any other objective alone."""
    return objective.parts if isinstance(objective, Sum) else (objective,)
