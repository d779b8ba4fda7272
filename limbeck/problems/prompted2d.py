"""The eight Gaussians of mixture2d with a side of the ring as a class, and a network that reads it as a prompt."""

from functools import cached_property

import torch

from limbeck.diffusion import Denoiser
from limbeck.problems.attention import CrossAttentionMLP
from limbeck.problems.mixture2d import Mixture2D
from limbeck.rng import Rng
from limbeck.teachers import GaussianMixture, Trained
from limbeck.tree import Tree


class Prompted2D(Mixture2D):
    """Classes 0 to 3 are pairs of neighbours, so that "away from a class" is a direction; 4 is the empty prompt.

    Under the empty prompt all modes are right. It occurs as often as each class.

    >>> problem = Prompted2D()
    >>> problem.agrees(problem.teacher.means[:2], torch.tensor([1, 4])).tolist()
    [False, True]
    """

    name = "prompted2d"
    empty = 4
    """The label of the empty prompt."""

    @cached_property
    def teacher(self) -> GaussianMixture:
        means, side = super().teacher.means, torch.arange(8) // 2
        labels = torch.cat([side, torch.full_like(side, self.empty)])
        return GaussianMixture(means=means.repeat(2, 1), std=0.08, labels=labels, network=self.network)

    def network(self) -> Denoiser:
        return Trained(CrossAttentionMLP(size=2, classes=4))

    def conditions(self, n: int, rng: Rng) -> Tree:
        return rng.integers(n, self.empty + 1)


def problem() -> Prompted2D:
    """The problem, as the command line makes it."""
    return Prompted2D()
