"""ASD: the teacher at a noisier time, under the same noise, stands in for a critic. arXiv 2407.02040.

Without guidance (7.5 in the paper), so that the teacher's own distribution is the goal, and from smaller noise levels
on (0.3 to 0.6 of the clock; 0.5 to 0.98).
"""

from dataclasses import replace

from torch import nn

from limbeck.diffusion import Annealed, Uniform
from limbeck.engine import Claim, Linear, Paper, Recipe, Stage
from limbeck.objectives import ASD, SDS, Shifted
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import against
from limbeck.recipes.parts import particles
from limbeck.rng import Rng
from limbeck.students import Particles

TIMES = Annealed(first=Uniform(lo=0.3, hi=0.6), last=Uniform(lo=0.02, hi=0.2))


def by_added_noise(stage: Stage) -> Stage:
    """SDS at the same noise levels."""
    return replace(stage, objective=SDS(times=TIMES))


def misses(student: nn.Module, problem: Generative, seed: int) -> float:
    """The share of particles that are not what their condition asks for."""
    assert isinstance(student, Particles)
    draw = student.draw(len(student.x), None, Rng(seed))
    return 1 - problem.agrees(draw.x.detach(), draw.cond).double().mean().item()


def recipe(problem: Generative, steps: int = 1_000) -> Recipe:
    objective = ASD(fake=Shifted(start=Linear(first=0.3, last=0.02)), times=TIMES)
    return Recipe(
        stages=(particles("asd", objective, steps=steps),),
        paper=Paper("2407.02040", "Ma et al. 2024"),
        claim=Claim(
            text="at most 0.2 × as many particles miss the modes of their class as with SDS, and no critic is trained",
            check=against(by_added_noise, misses),
            bound=0.2,
            on="mixture2d",
        ),
    )
