"""CSM: the condition alone pulls, at points that DDIM inversion leads to instead of noise. arXiv 2410.21299.

The two-dimensional core of TV-3DG: classifier score matching, without its fusion of visual prompts and its reward.
"""

from dataclasses import replace

from limbeck.diffusion import Annealed, Uniform
from limbeck.engine import Claim, Paper, Recipe, Stage
from limbeck.objectives import CSD, Fresh, Inverted
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import against, to_mode
from limbeck.recipes.parts import particles

CSM = CSD(noise=Inverted(), times=Annealed(first=Uniform(hi=0.6), last=Uniform(hi=0.3)))


def by_noise(stage: Stage) -> Stage:
    """CSD: the same at points that fresh noise leads to."""
    return replace(stage, objective=replace(CSM, noise=Fresh()))


def recipe(problem: Generative, steps: int = 600) -> Recipe:
    return Recipe(
        stages=(particles("csm", CSM, steps=steps),),
        paper=Paper("2410.21299", "Yang et al. 2024"),
        claim=Claim(
            text="particles end at most 0.9 × as far from a mode of their class as by CSD, under fresh noise",
            check=against(by_noise, to_mode),
            bound=0.9,
            on="mixture2d",
        ),
    )
