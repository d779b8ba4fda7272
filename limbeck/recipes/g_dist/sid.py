"""SiD: the student descends the Fisher divergence to its teacher, data-free, in one step. arXiv 2404.04057.

With α = 1 as in SiDA (1.2 in SiD), and one pass that starts at σ = 1 (2.5), which suits small images.
"""

from limbeck.diffusion import LogNormal
from limbeck.engine import EMA, Adam, Claim, Linear, Paper, Recipe, Stage
from limbeck.objectives import Critic, SiD
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import one_step_frechet
from limbeck.students import FromTeacher


def recipe(problem: Generative, steps: int = 1_200) -> Recipe:
    adam = Adam(lr=5e-4, betas=(0.0, 0.99), schedule=Linear())
    return Recipe(
        stages=(
            Stage(
                name="sid",
                steps=steps,
                student=FromTeacher(ratios=(1.0,)),
                objective=SiD(alpha=1.0, critic=Critic(times=LogNormal(mean=-0.8, std=1.4))),
                optim={"student": adam, "critic": adam},
                ema=EMA(decay=0.99),
            ),
        ),
        paper=Paper("2404.04057", "Zhou et al. 2024"),
        claim=Claim(
            text="one step, trained without data, ≤ 1.7 × the teacher's Fréchet distance at 35 NFE",
            check=one_step_frechet,
            bound=1.7,
            on="digits",
        ),
    )
