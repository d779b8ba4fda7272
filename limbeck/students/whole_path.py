"""A few-step generator that learns from its samples alone: gradients go back through all of its steps."""

from limbeck.engine.student import Draw
from limbeck.rng import Rng
from limbeck.students.trajectory import Trajectory
from limbeck.tree import Tree


class WholePath(Trajectory):
    """A `Trajectory` whose draws are its samples, where all steps have led, with gradients through every one of them.

    `FewStep` and `Trajectory` train one step at a time, each to predict samples by itself, and so get a K-th of the
    ticks for each. Here the K steps are one deep network with shared weights: only what the last one predicts is ever
    compared with anything, and the others may lead wherever that is easiest to come from. The price is the memory and
    the time of K passes with gradients, and a student that can be asked for K steps alone.

    Args and errors: those of `FewStep`.

    Source: what Phased DMD, arXiv 2510.27684, sec. 1, calls DMD's direct extension to several steps; it finds it
    costly, and steps that are trained one at a time as poor in variety as a single one. The sampler is that of TDM,
    arXiv 2503.06674, sec. 4.1.

    >>> import torch
    >>> from limbeck.teachers import GaussianMixture
    >>> denoiser = GaussianMixture(means=torch.zeros(1, 2)).clone(trainable=True)
    >>> draw = WholePath(denoiser, ratios=(1.0, 0.5, 0.25), shape=(2,)).draw(3, None, Rng(0))
    >>> draw.segment, draw.x.requires_grad
    ((0.0, 1.0), True)
    """

    def draw(self, n: int, cond: Tree, rng: Rng) -> Draw:
        noise = self._noise(n, rng)
        *_, last = self.states(noise, cond)
        return Draw(last.x, cond, noise, (0.0, float(self.times[0])))
