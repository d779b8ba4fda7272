"""A user's own parts: noise levels, a schedule and an objective that the package does not know, one with a function."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from limbeck import BadSetting, Claim, Loss, Objective, Paper, Recipe, Schedule, Stage, Term, Tick, Times
from limbeck.diffusion import Process
from limbeck.engine import Adam, Cast
from limbeck.engine.recipe import Prior
from limbeck.problems.problem import Generative
from limbeck.students import Particles


@dataclass(frozen=True, kw_only=True)
class Late(Times):
    """Noise levels near the end."""

    power: float = 2.0

    def __post_init__(self) -> None:
        if self.power <= 0:
            raise BadSetting(f"power must be above 0, got {self.power:g}.")

    def at(self, u: Tensor, process: Process, progress: float = 0.0) -> Tensor:
        return process.at_fraction(u**self.power)


@dataclass(frozen=True, kw_only=True)
class Steps(Schedule):
    """Half of it after half of the run."""

    def __call__(self, progress: float) -> float:
        return 1.0 if progress < 0.5 else 0.5


@dataclass(frozen=True, kw_only=True)
class Pull(Objective):
    """Towards what the teacher sees, by any distance."""

    times: Times = field(default_factory=Late)
    distance: Callable[[Tensor], Tensor] = torch.square

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        def loss(tick: Tick) -> Loss:
            seen = tick.noised(self.times)
            return Loss(self.distance(seen.x - tick.denoise("teacher", seen)).sum(1))

        return (Term("pull", "student", loss, of=self),)


def particles(problem: Generative, prior: Prior) -> nn.Module:
    """Particles at the origin."""
    return Particles(torch.zeros(8, *problem.shape))


def recipe(problem: Generative) -> Recipe:
    """Without a number of steps among its arguments."""
    optim = {"default": Adam(lr=0.1, schedule=Steps())}
    stage = Stage(name="pull", steps=4, student=particles, objective=Pull(), batch=8, optim=optim)
    claim = Claim(text="pulls", check=lambda trial: 0.0, bound=1.0, on="mixture2d")
    return Recipe(stages=(stage,), paper=Paper("0000.00000", "nobody"), claim=claim)
