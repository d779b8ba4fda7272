"""Tumours, malignant or benign, to classify by shapes of cell nuclei, with four labels a class."""

from collections.abc import Callable
from typing import Any

from limbeck.problems.tabular import Tabular


class BreastCancer(Tabular):
    """569 tumours by 30 measurements (Wolberg, Mangasarian & Street 1993, UCI, CC BY 4.0); see `Tabular`.

    By eight labels alone the student errs on 10 % of the 284 held-out tumours or more, with the teacher on 2 %.

    >>> problem = BreastCancer()
    >>> problem.train[1].bincount().tolist(), len(problem.unlabelled), problem.accuracy(problem.teacher) > 0.95
    ([4, 4], 285, True)
    """

    name = "breast-cancer"
    per_class = 4

    @staticmethod
    def load() -> Callable[..., Any]:
        from sklearn.datasets import load_breast_cancer  # a slow import, and only this problem needs it

        return load_breast_cancer


def problem() -> BreastCancer:
    """The problem, as the command line makes it."""
    return BreastCancer()


if __name__ == "__main__":  # trains the shipped teacher again
    BreastCancer().ship()
