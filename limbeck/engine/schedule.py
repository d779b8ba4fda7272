"""Numbers that move with the run: weights and learning rates are pure functions of progress in [0, 1]."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from limbeck.errors import in_range


class Schedule(ABC):
    """A pure function of progress, so a resumed run needs no state to know where it stands."""

    @abstractmethod
    def __call__(self, progress: float) -> float: ...

    def __mul__(self, factor: "float | Schedule") -> "Schedule":
        if not isinstance(factor, int | float | Schedule):  # pyright: ignore[reportUnnecessaryIsInstance]
            return NotImplemented  # an objective knows how to be weighed
        return Product(first=self, second=factor)

    __rmul__ = __mul__


@dataclass(frozen=True, kw_only=True)
class Linear(Schedule):
    """From ``first`` to ``last`` in a straight line, reached at ``until`` and kept.

    >>> [Linear(first=1.0, last=0.0, until=0.5)(p) for p in (0.0, 0.25, 1.0)]
    [1.0, 0.5, 0.0]
    """

    first: float = 1.0
    last: float = 0.0
    until: float = 1.0

    def __post_init__(self) -> None:
        in_range("until", self.until, 1e-9, 1)

    def __call__(self, progress: float) -> float:
        return self.first + (self.last - self.first) * min(progress / self.until, 1)


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Linear warm-up to 1 over ``warmup`` of the run, then half a cosine down to ``last``.

    >>> [round(Cosine(warmup=0.1)(p), 2) for p in (0.05, 0.1, 0.55, 1.0)]
    [0.5, 1.0, 0.5, 0.0]
    """

    warmup: float = 0.0
    last: float = 0.0

    def __post_init__(self) -> None:
        in_range("warmup", self.warmup, 0, 0.99)

    def __call__(self, progress: float) -> float:
        if progress < self.warmup:
            return progress / self.warmup
        angle = math.pi * (progress - self.warmup) / (1 - self.warmup)
        return self.last + (1 - self.last) * (1 + math.cos(angle)) / 2


@dataclass(frozen=True, kw_only=True)
class Product(Schedule):
    """The product of two schedules or numbers."""

    first: "float | Schedule"
    second: "float | Schedule"

    def __call__(self, progress: float) -> float:
        return value_at(self.first, progress) * value_at(self.second, progress)


def value_at(value: "float | Schedule", progress: float) -> float:
    """A number as it is; a schedule at this progress."""
    return value(progress) if isinstance(value, Schedule) else value
