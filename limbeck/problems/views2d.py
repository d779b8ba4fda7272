"""One object, eight cameras, and a teacher of single views that prefers the front."""

from functools import cached_property
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

VIEWS, POINTS = 8, 24


class Views2D(Generative):
    """A ring of 24 points under eight cameras, each of which shares one point with the next.

    A view has two pixels; it is a front, around (0.7, 0.7), or a back, around (−0.7, −0.7). The teacher knows what
    views look like, with 3 fronts to 2 backs, but not from where they are taken, for its components have no labels.
    Conditions are the numbers of the cameras, which critics may learn.

    >>> problem = Views2D()
    >>> problem.cameras.shape, problem.spread(10).tolist()
    (torch.Size([8, 2, 24]), [0, 1, 2, 3, 4, 5, 6, 7, 0, 1])
    """

    name = "views2d"
    threads = 1
    shape = (2,)
    ratio = 3.0
    particles = 64

    @cached_property
    def teacher(self) -> GaussianMixture:
        means, weights = torch.tensor([[0.7, 0.7], [-0.7, -0.7]]), torch.tensor([0.6, 0.4])
        return GaussianMixture(means=means, std=0.1, weights=weights, network=self.network)

    @cached_property
    def cameras(self) -> Tensor:
        """A pixel is the mean of two points next to each other, a view has two pixels, [8, 2, 24]."""
        cameras = torch.zeros(VIEWS, 2, POINTS)
        for view in range(VIEWS):
            for k in range(4):
                cameras[view, k // 2, (3 * view + k) % POINTS] = 0.5
        return cameras

    def network(self) -> Denoiser:
        return Trained(ResidualMLP(shape=(2,), classes=VIEWS, width=32, blocks=2))

    @cached_property
    def source(self) -> Source:
        def make(n: int, rng: Rng) -> Batch:
            return {"x": self.teacher.sample(n, rng), "cond": self.conditions(n, rng)}

        return Drawn(make, fields=("x", "cond"))

    def conditions(self, n: int, rng: Rng) -> Tree:
        return rng.integers(n, VIEWS)

    def spread(self, n: int) -> Tree:
        return torch.arange(n) % VIEWS

    def reference(self) -> Tensor:
        return self.teacher.sample(4096, Rng((self.name, "reference")))

    def agrees(self, x: Tensor, cond: Tree) -> Tensor:
        """Within 3.5 standard deviations of a mode, which holds for 99.8 % of the teacher."""
        return (torch.cdist(x, self.teacher.means) < 0.35).any(1)

    shown = 500

    def show(self, axes: "Axes", x: Tensor, cond: Tree) -> None:
        axes.scatter(*x.T, c=cond, s=6, cmap="viridis", linewidths=0)
        axes.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6))


def problem() -> Views2D:
    """The problem, as the command line makes it."""
    return Views2D()
