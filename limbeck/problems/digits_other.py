"""Digits 0 to 4 to know well, and digits 5 to 9 to learn from two labels each: another task for what is known."""

from functools import cached_property

import torch
from torch import nn

from limbeck.engine.data import Source
from limbeck.problems.digits import jittered, split
from limbeck.problems.networks import ConvNet
from limbeck.problems.problem import Classification
from limbeck.rng import Rng, seeded


class DigitsOther(Classification):
    """Two images of each of 5 … 9, as classes 0 … 4, and ``known``, all images of 0 … 4, which share no class.

    >>> problem = DigitsOther()
    >>> problem.train[1].bincount().tolist(), problem.known[1].unique().tolist()
    ([2, 2, 2, 2, 2], [0, 1, 2, 3, 4])
    """

    name = "digits-other"
    threads = 1
    classes = 5

    def __init__(self, per_class: int = 2) -> None:
        x, y, heldout_x, heldout_y = split()
        order = Rng((self.name,)).uniform(len(y)).argsort()
        rows = torch.cat([order[y[order] == k][:per_class] for k in range(5, 10)])
        self.train = x[rows], y[rows] - 5
        self.known = x[y < 5], y[y < 5]
        self.heldout = heldout_x[heldout_y >= 5], heldout_y[heldout_y >= 5] - 5

    @cached_property
    def teacher(self) -> nn.Module:
        """The larger network before training: who knows the other digits is made by the recipe."""
        with seeded(self.name):
            return self.larger()

    def larger(self) -> ConvNet:
        """An untrained network for who knows the other digits."""
        return ConvNet(classes=5, widths=(16, 32, 32))

    @cached_property
    def source(self) -> Source:
        return jittered(*self.train)

    def network(self) -> ConvNet:
        return ConvNet(classes=5)


def problem() -> DigitsOther:
    """The problem, as the command line makes it."""
    return DigitsOther()
