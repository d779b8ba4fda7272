"""Digits to classify with five labels a class: a convolutional teacher, a small perceptron as the student."""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import nn

from limbeck.engine import Adam, Cosine, distill
from limbeck.engine.data import Source
from limbeck.objectives import CrossEntropy
from limbeck.problems.digits import ASSETS, jittered, load_judge, split
from limbeck.problems.problem import Classification
from limbeck.rng import Rng, seeded


class DigitsClassify(Classification):
    """The digits' classifier, which saw all 1 300 images, teaches a perceptron of 32 hidden units on 50 of them.

    Teacher and student see the same randomly moved, turned and scaled views. ``rows`` says which of all images have
    labels, ``unlabelled`` is all of them, [1300, 1, 8, 8].

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
        self.rows, self.unlabelled = chosen, x
        self.train, self.heldout = (x[chosen], y[chosen]), (heldout_x, heldout_y)

    @cached_property
    def source(self) -> Source:
        return jittered(*self.train)

    @cached_property
    def teacher(self) -> nn.Module:
        return load_judge()

    def network(self) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def problem() -> DigitsClassify:
    """The problem, as the command line makes it."""
    return DigitsClassify()


def train_classifier(name: str, make: Callable[[], nn.Module], source: Source, *, steps: int = 2000) -> None:
    """Trains a network on labelled data and writes it to the shipped assets."""
    from safetensors.torch import save_file

    with seeded(name):
        net = make()
    optim = Adam(lr=3e-3, weight_decay=0.05, schedule=Cosine(warmup=0.05), clip=1.0)
    distill(None, net, CrossEntropy(), source, steps=steps, batch=128, optim=optim).finish()
    save_file({key: value.contiguous() for key, value in net.state_dict().items()}, ASSETS / f"{name}.safetensors")
    print(f"{name} trained")
