"""SDS: samples descend the teacher's score under a condition, and seek its modes. arXiv 2209.14988."""

from limbeck.diffusion import Annealed, Uniform
from limbeck.engine import Claim, Paper, Recipe
from limbeck.objectives import SDS
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import mode_distance
from limbeck.recipes.parts import particles


def recipe(problem: Generative, steps: int = 1_000) -> Recipe:
    objective = SDS(times=Annealed(first=Uniform(hi=0.4), last=Uniform(hi=0.2)))
    return Recipe(
        stages=(particles("sds", objective, steps=steps),),
        paper=Paper("2209.14988", "Poole et al. 2022"),
        claim=Claim(
            text="particles end nearer to a mode of their class than half the distance of the teacher's own samples",
            check=mode_distance,
            bound=0.5,
            on="mixture2d",
        ),
    )
