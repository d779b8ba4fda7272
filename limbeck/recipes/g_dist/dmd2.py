"""DMD2: distribution matching with a two-time-scale critic and a diffusion GAN. arXiv 2405.14867."""

from limbeck.diffusion import Karras
from limbeck.engine import EMA, Adam, Claim, Cosine, Paper, Recipe, Stage
from limbeck.objectives import DMD, GAN, Critic
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import one_step_frechet
from limbeck.students import OneStep


def recipe(problem: Generative, steps: int = 1_500) -> Recipe:
    critic = Critic(times=Karras())
    return Recipe(
        stages=(
            Stage(
                name="dmd2",
                steps=steps,
                student=OneStep.of_teacher,
                objective=DMD(critic=critic, critic_steps=2) + 3e-3 * GAN(critic=critic, critic_steps=2),
                optim={"default": Adam(lr=2e-4, betas=(0.0, 0.99), schedule=Cosine())},
                ema=EMA(decay=0.995),
            ),
        ),
        paper=Paper("2405.14867", "Yin et al. 2024"),
        claim=Claim(
            text="one step ≤ 1.1 × the teacher's Fréchet distance at 35 NFE",
            check=one_step_frechet,
            bound=1.1,
            on="digits",
        ),
    )
