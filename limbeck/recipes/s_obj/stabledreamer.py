"""StableDreamer: SDS as a pull to what the teacher makes of the sample, with noise that fades. arXiv 2312.02189.

The loss is ½·c·‖x − x̂₀‖² with x̂₀ taken as it is, whose gradient is that of SDS under c = w·α/σ. The largest noise level
falls over half the run from 0.98 to 0.2 of the clock. The paper's second stage is in a latent space, which is not here.
"""

from dataclasses import replace

from limbeck.diffusion import Annealed, Uniform
from limbeck.engine import Claim, Paper, Recipe
from limbeck.objectives import Redenoised, Weight
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import against, to_mode
from limbeck.recipes.parts import particles

PULL = Redenoised(weight=Weight(), times=Annealed(first=Uniform(hi=0.98), last=Uniform(hi=0.2), until=0.5))


def recipe(problem: Generative, steps: int = 1_000) -> Recipe:
    return Recipe(
        stages=(particles("stabledreamer", PULL, steps=steps),),
        paper=Paper("2312.02189", "Guo et al. 2023"),
        claim=Claim(
            text="particles end at most 0.6 × as far from a mode of their class as under noise levels that stay",
            check=against(lambda stage: replace(stage, objective=replace(PULL, times=Uniform())), to_mode),
            bound=0.6,
            on="mixture2d",
        ),
    )
