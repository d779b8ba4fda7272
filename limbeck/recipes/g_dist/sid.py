"""SiD: the student descends the Fisher divergence to its teacher, data-free, in one step. arXiv 2404.04057.

With α = 1 as in SiDA (1.2 in SiD), and one pass that starts at σ = 1 (2.5), which suits small images. Little noise is
drawn more rarely than elsewhere: a critic's error, which is divided by the level's square, drowns the rest there.
"""

from limbeck.diffusion import LogNormal
from limbeck.engine import EMA, Claim, Paper, Recipe
from limbeck.objectives import Critic, SiD
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import one_step_frechet
from limbeck.recipes.parts import generator

TIMES = LogNormal(mean=-0.3, std=1.0)


def recipe(problem: Generative, steps: int = 3_600) -> Recipe:
    sid, slow = SiD(alpha=1.0, critic=Critic(times=TIMES), times=TIMES), EMA(decay=0.998)
    return Recipe(
        stages=(generator("sid", sid, steps=steps, batch=64, ema=slow),),
        paper=Paper("2404.04057", "Zhou et al. 2024"),
        claim=Claim(
            text="one step, trained without data, ≤ 1.1 × the teacher's Fréchet distance at 35 NFE",
            check=one_step_frechet,
            bound=1.1,
            on="digits",
        ),
    )
