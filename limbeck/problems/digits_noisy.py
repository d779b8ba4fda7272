"""Digits to classify by labels of which a fifth are wrong."""

import torch

from limbeck.problems.digits_classify import DigitsClassify
from limbeck.rng import Rng


class DigitsNoisy(DigitsClassify):
    """Thirty images a class, a fifth of them with a label drawn at random from the other nine, for the perceptron.

    >>> from limbeck.problems.digits import split
    >>> problem = DigitsNoisy()
    >>> clean = split()[1][problem.rows]
    >>> round((problem.train[1] != clean).double().mean().item(), 1)
    0.2
    """

    name = "digits-noisy"

    def __init__(self, per_class: int = 30, wrong: float = 0.2) -> None:
        super().__init__(per_class)
        (x, y), rng = self.train, Rng((self.name,))
        flip, by = rng.uniform(len(y)) < wrong, 1 + rng.integers(len(y), 9)
        self.train = x, torch.where(flip, (y + by) % 10, y)


def problem() -> DigitsNoisy:
    """The problem, as the command line makes it."""
    return DigitsNoisy()
