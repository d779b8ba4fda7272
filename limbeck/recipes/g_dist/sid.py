"""SiD: the student descends the Fisher divergence to its teacher, data-free, in one step. arXiv 2404.04057.

With α = 1 as in SiDA (1.2 in SiD), and one pass that starts at σ = 1 (2.5), which suits small images.
"""

from limbeck.engine import EMA, Claim, Paper, Recipe
from limbeck.objectives import Critic, SiD
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import one_step_frechet
from limbeck.recipes.parts import TIMES, generator


def recipe(problem: Generative, steps: int = 4_400) -> Recipe:
    sid, slow = SiD(alpha=1.0, critic=Critic(times=TIMES), times=TIMES), EMA(decay=0.995)
    return Recipe(
        stages=(generator("sid", sid, steps=steps, batch=64, ema=slow),),
        paper=Paper("2404.04057", "Zhou et al. 2024"),
        claim=Claim(
            text="one step, trained without data, ≤ 1.25 × the teacher's Fréchet distance at 35 NFE",
            check=one_step_frechet,
            bound=1.25,
            on="digits",
        ),
    )
