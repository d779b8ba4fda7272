"""The eight Gaussians of mixture2d under a trained network: a teacher with features and layers, and an exact judge."""

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from limbeck.diffusion import LogNormal
from limbeck.engine import EMA, Adam, Cosine, distill
from limbeck.engine.data import Source
from limbeck.objectives import Denoising
from limbeck.problems.digits import ASSETS
from limbeck.problems.mixture2d import Mixture2D
from limbeck.problems.networks import ResidualMLP
from limbeck.problems.problem import Generative
from limbeck.rng import Rng, seeded
from limbeck.teachers import GaussianMixture, Trained
from limbeck.tree import Tree

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WEIGHTS = ASSETS / "mixture2d_network_teacher.safetensors"


class Mixture2DNetwork(Generative):
    """Mixture2D's data and judge; the teacher is a network of 130 000 parameters that was trained on them.

    >>> problem = Mixture2DNetwork()
    >>> problem.teacher_sample(torch.randn(5, 2), torch.zeros(5, dtype=torch.long)).shape
    torch.Size([5, 2])
    """

    name = "mixture2d-network"
    threads = 1
    shape = (2,)
    ratio = 3.0
    shown = Mixture2D.shown

    @cached_property
    def data(self) -> Mixture2D:
        """The problem whose data these are."""
        return Mixture2D()

    @property
    def exact(self) -> GaussianMixture:
        """The distribution that the teacher has learned."""
        return self.data.teacher

    @cached_property
    def teacher(self) -> Trained:
        return blank_teacher().load(WEIGHTS).requires_grad_(False).eval()

    @property
    def source(self) -> Source:
        return self.data.source

    def conditions(self, n: int, rng: Rng) -> Tree:
        return self.data.conditions(n, rng)

    def reference(self) -> Tensor:
        return self.data.reference()

    def agrees(self, x: Tensor, cond: Tree) -> Tensor:
        return self.data.agrees(x, cond)

    def show(self, axes: "Axes", x: Tensor, cond: Tree) -> None:
        self.data.show(axes, x, cond)


def problem() -> Mixture2DNetwork:
    """The problem, as the command line makes it."""
    return Mixture2DNetwork()


def blank_teacher() -> Trained:
    """The teacher's network before training."""
    return Trained(ResidualMLP(shape=(2,), classes=4, width=64, blocks=3))


def main() -> None:
    """Trains the shipped network again: ``python -m limbeck.problems.mixture2d_network``."""
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    with seeded("mixture2d", "teacher"):
        teacher = blank_teacher()
    optim = Adam(lr=2e-3, betas=(0.9, 0.99), schedule=Cosine(warmup=1 / 30))
    objective = Denoising(times=LogNormal(mean=-1.0, std=1.6), drop=0.1)
    run = distill(None, teacher, objective, Mixture2D().source, steps=4000, optim=optim, ema=EMA(decay=0.998))
    save_file({name: value.contiguous() for name, value in run.finish().state_dict().items()}, WEIGHTS)


if __name__ == "__main__":
    main()
