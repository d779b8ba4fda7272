"""A user's own file: a problem whose teacher is a network, for adapters to share its weights."""

from functools import cached_property

import torch
from torch import Tensor, nn

from limbeck import Trained
from limbeck.engine.data import Dataset, Source
from limbeck.problems.networks import ResidualMLP
from limbeck.problems.problem import Generative
from limbeck.rng import Rng, seeded


class Lent(Generative):
    """Points in the plane, and a random network that should know them."""

    name = "lent"
    threads = 1
    shape = (2,)
    steps = 3
    judged = 50

    @cached_property
    def teacher(self) -> Trained:
        with seeded(self.name):
            net = ResidualMLP(shape=self.shape, width=16, blocks=3)
            nn.init.normal_(net.out.weight, std=0.3)
        return Trained(net)

    @property
    def source(self) -> Source:
        return Dataset(x=self.reference())

    def conditions(self, n: int, rng: Rng) -> None:
        return None

    def reference(self) -> Tensor:
        return Rng(self.name).normal(100, 2, dtype=torch.float32)

    def agrees(self, x: Tensor, cond: object) -> Tensor:
        return torch.ones(len(x), dtype=torch.bool)

    def show(self, axes: object, x: Tensor, cond: object) -> None:
        pass


def problem() -> Lent:
    """The problem, as the command line makes it."""
    return Lent()
