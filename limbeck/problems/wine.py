"""Wines of three cultivars to classify by chemistry, with two labels a class."""

from collections.abc import Callable
from typing import Any

from limbeck.problems.tabular import Tabular


class Wine(Tabular):
    """178 wines by 13 measurements (Aeberhard & Forina 1992, UCI, CC BY 4.0); see `Tabular`.

    By six labels alone the student errs on 9 % of the 88 held-out wines or more, with the teacher on 5 %.

    >>> problem = Wine()
    >>> problem.train[1].bincount().tolist(), len(problem.unlabelled), problem.accuracy(problem.teacher) > 0.95
    ([2, 2, 2], 90, True)
    """

    name = "wine"
    per_class = 2

    @staticmethod
    def load() -> Callable[..., Any]:
        from sklearn.datasets import load_wine  # a slow import, and only this problem needs it

        return load_wine


def problem() -> Wine:
    """The problem, as the command line makes it."""
    return Wine()


if __name__ == "__main__":  # trains the shipped teacher again
    Wine().ship()
