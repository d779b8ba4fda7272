"""Eight Gaussians on a ring, in four classes: a teacher whose score is exact."""

from functools import cached_property
from math import pi
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from limbeck.diffusion import Denoiser
from limbeck.engine.data import Batch, Drawn, Source
from limbeck.problems.networks import ResidualMLP
from limbeck.problems.problem import Generative
from limbeck.rng import Rng
from limbeck.teachers import GaussianMixture, Trained
from limbeck.tree import Tree

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Mixture2D(Generative):
    """Modes at radius 1 with standard deviation 0.08; classes are pairs of opposite modes.

    >>> problem = Mixture2D()
    >>> problem.teacher_sample(torch.randn(5, 2), torch.zeros(5, dtype=torch.long)).shape
    torch.Size([5, 2])
    """

    name = "mixture2d"
    threads = 1
    shape = (2,)
    ratio = 3.0

    @cached_property
    def teacher(self) -> GaussianMixture:
        angles = torch.arange(8) * (2 * pi / 8)
        means = torch.stack([angles.cos(), angles.sin()], 1)
        return GaussianMixture(means=means, std=0.08, labels=torch.arange(8) % 4, network=self.network)

    def network(self) -> Denoiser:
        return Trained(ResidualMLP(shape=(2,), classes=4, width=64, blocks=3))

    @cached_property
    def source(self) -> Source:
        def make(n: int, rng: Rng) -> Batch:
            cond = self.conditions(n, rng)
            return {"x": self.teacher.sample(n, rng, cond), "cond": cond}

        return Drawn(make, fields=("x", "cond"))

    def conditions(self, n: int, rng: Rng) -> Tree:
        return rng.integers(n, 4)

    def reference(self) -> Tensor:
        return self.teacher.sample(4096, Rng(("mixture2d", "reference")))

    def agrees(self, x: Tensor, cond: Tree) -> Tensor:
        """Within 3.5 standard deviations of a mode of the class, which holds for 99.8 % of the teacher."""
        distance = torch.cdist(x, self.teacher.means) / 0.08  # [B, 8]
        assert self.teacher.labels is not None
        return ((distance < 3.5) & (self.teacher.labels == cond[:, None])).any(1)

    shown = 1000

    def show(self, axes: "Axes", x: Tensor, cond: Tree) -> None:
        axes.scatter(*x.T, c=cond, s=4, cmap="viridis", linewidths=0)
        axes.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6))


def problem() -> Mixture2D:
    """The problem, as the command line makes it."""
    return Mixture2D()
