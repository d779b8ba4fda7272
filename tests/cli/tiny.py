"""A user's own file: a problem and a recipe in one place, small enough to run in a second."""

from functools import cached_property

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from limbeck import DMD, EMA, GAN, Adam, Claim, Critic, Fake, GaussianMixture, OneStep, Paper, Recipe, Stage, Trained
from limbeck.engine.data import Batch, Drawn, Source
from limbeck.engine.recipe import Prior
from limbeck.problems.networks import ResidualMLP
from limbeck.problems.problem import Generative
from limbeck.rng import Rng


class Noisy(nn.Module):
    """A network with dropout: what a resumed run goes wrong in."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.drop = ResidualMLP(shape=(2,), classes=2, width=16, blocks=1), nn.Dropout(0.1)
        self.taps = self.net.taps

    def forward(self, x: Tensor, *args: object, **settings: object) -> object:
        return self.net(self.drop(x), *args, **settings)


class Four(Generative):
    """Four Gaussians in the plane, in two classes."""

    name = "four"
    threads = 1
    shape = (2,)
    steps = 3
    shown = 20

    @cached_property
    def teacher(self) -> GaussianMixture:
        means = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
        labels = torch.tensor([0, 1, 0, 1])
        return GaussianMixture(means=means, std=0.2, labels=labels, network=lambda: Trained(Noisy()))

    @cached_property
    def source(self) -> Source:
        def make(n: int, rng: Rng) -> Batch:
            cond = self.conditions(n, rng)
            return {"x": self.teacher.sample(n, rng, cond), "cond": cond}

        return Drawn(make, fields=("x", "cond"))

    def conditions(self, n: int, rng: Rng) -> Tensor:
        return rng.integers(n, 2)

    def reference(self) -> Tensor:
        return self.teacher.sample(200, Rng("four"))

    def agrees(self, x: Tensor, cond: Tensor) -> Tensor:
        return torch.cdist(x, self.teacher.means).argmin(1) % 2 == cond

    def show(self, axes: Axes, x: Tensor, cond: Tensor) -> None:
        axes.scatter(*x.T, c=cond)


def problem() -> Four:
    """The problem, as the command line makes it."""
    return Four()


def fresh(problem: Four, prior: Prior) -> OneStep:
    """A one-step student from a fresh network."""
    return OneStep(problem.network(), shape=problem.shape)


def recipe(problem: Four, steps: int = 60, rate: float = 1e-3) -> Recipe:
    """A critic, a discriminator, a moving average and a schedule: state of every kind."""
    critic = Critic()
    stage = Stage(
        name="tiny",
        steps=steps,
        student=fresh,
        objective=DMD(fake=Fake(critic=critic), critic_steps=2) + 0.1 * GAN(critic=critic, critic_steps=2, hidden=8),
        optim={"default": Adam(lr=rate), "discriminator": Adam(lr=2e-3)},
        batch=32,
        ema=EMA(decay=0.9),
    )
    claim = Claim(text="is there", check=lambda trial: float(trial.seed), bound=1.0, on="digits")
    return Recipe(stages=(stage,), paper=Paper("0000.00000", "nobody"), claim=claim)
