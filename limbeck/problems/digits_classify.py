"""Digits to classify with five labels a class: a convolutional teacher, a small perceptron as the student."""

from abc import abstractmethod
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from limbeck.engine import Adam, Cosine, distill
from limbeck.engine.data import Source
from limbeck.objectives import CrossEntropy
from limbeck.problems.digits import ASSETS, jittered, load_judge, split
from limbeck.problems.networks import ConvNet
from limbeck.problems.problem import Classification
from limbeck.rng import Rng, seeded
from limbeck.teachers import read_tensors


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


class DigitsTransfer(DigitsClassify):
    """A shipped network of another kind, which saw all 1 300 images, teaches three small convolutions on 50 of them."""

    @staticmethod
    @abstractmethod
    def blank() -> nn.Module:
        """The teacher's network before training."""

    @cached_property
    def teacher(self) -> nn.Module:
        teacher = self.blank()
        teacher.load_state_dict(read_tensors(self.asset()))
        return teacher.requires_grad_(False).eval()

    def network(self) -> nn.Module:
        return ConvNet(classes=10)

    @classmethod
    def asset(cls) -> Path:
        """The file of the teacher's weights."""
        return ASSETS / f"{cls.name.replace('-', '_')}.safetensors"

    @classmethod
    def ship(cls) -> None:
        """Trains the teacher again and writes it."""
        from safetensors.torch import save_file

        torch.set_num_threads(1)
        with seeded(cls.asset().stem):
            net = cls.blank()
        optim = Adam(lr=3e-3, weight_decay=0.05, schedule=Cosine(warmup=0.05), clip=1.0)
        distill(None, net, CrossEntropy(), jittered(*split()[:2]), steps=2000, batch=128, optim=optim).finish()
        save_file({key: value.contiguous() for key, value in net.state_dict().items()}, cls.asset())
        print(f"{cls.name} trained")


def problem() -> DigitsClassify:
    """The problem, as the command line makes it."""
    return DigitsClassify()
