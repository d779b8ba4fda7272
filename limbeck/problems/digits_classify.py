"""Digits to classify with five labels a class: a convolutional teacher, a small perceptron as the student."""

from functools import cached_property

import torch
from torch import nn

from limbeck.engine.data import Source
from limbeck.problems.digits import DigitFeatures, jittered, load_judge, split
from limbeck.problems.problem import Classification
from limbeck.rng import Rng


class DigitsClassify(Classification):
    """The digits' classifier, which saw all 1 300 images, teaches a perceptron of 32 hidden units on 50 of them.

    Teacher and student see the same randomly moved, turned and scaled views.

    >>> problem = DigitsClassify()
    >>> problem.train[1].bincount().tolist(), problem.accuracy(problem.teacher) > 0.99
    ([5, 5, 5, 5, 5, 5, 5, 5, 5, 5], True)
    """

    name = "digits-classify"
    threads = 1

    def __init__(self, per_class: int = 5) -> None:
        x, y, heldout_x, heldout_y = split()
        order = Rng((self.name,)).uniform(len(y)).argsort()
        chosen = torch.cat([order[y[order] == k][:per_class] for k in range(10)])
        self.train, self.heldout = (x[chosen], y[chosen]), (heldout_x, heldout_y)

    @cached_property
    def source(self) -> Source:
        return jittered(*self.train)

    @cached_property
    def teacher(self) -> DigitFeatures:
        return load_judge()

    def network(self) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def problem() -> DigitsClassify:
    """The problem, as the command line makes it."""
    return DigitsClassify()
