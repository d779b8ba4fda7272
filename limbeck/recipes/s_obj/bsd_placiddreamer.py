"""PlacidDreamer: balanced score distillation, no gradient of two at the other's cost. arXiv 2407.13976.

What the paper tunes a fixed guidance for is found for each sample; its reconstruction from views has no use here.
"""

from dataclasses import replace

from limbeck.diffusion import CFG, Annealed, Uniform
from limbeck.engine import Claim, Paper, Recipe, Stage
from limbeck.objectives import SDS, BalancedScoreDistillation
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import against, overshoot
from limbeck.recipes.parts import particles

BALANCED = BalancedScoreDistillation(ratio=15.0, times=Annealed(first=Uniform(hi=0.4), last=Uniform(hi=0.2)))


def fixed(stage: Stage) -> Stage:
    """The same two gradients at a ratio that stays, which is SDS under guidance."""
    sds = SDS(guidance=CFG(scale=BALANCED.ratio), times=BALANCED.times, weight=BALANCED.weight)
    return replace(stage, objective=sds)


def recipe(problem: Generative, steps: int = 400) -> Recipe:
    return Recipe(
        stages=(particles("bsd", BALANCED, steps=steps),),
        paper=Paper("2407.13976", "Huang et al. 2024"),
        claim=Claim(
            text="particles overshoot the circle of modes at most 0.75 × as far as under the same ratio, fixed, in SDS",
            check=against(fixed, overshoot),
            bound=0.75,
            on="mixture2d",
        ),
    )
