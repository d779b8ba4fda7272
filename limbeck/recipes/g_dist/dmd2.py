"""DMD2: distribution matching with a two-time-scale critic and a diffusion GAN. arXiv 2405.14867.

For small images and minutes instead of days: one pass starts at σ = 1 (80 in the paper), the critic takes 2 steps to
one of the student (5), the GAN weighs 0.3 on both sides (3e-3 and 1e-2), and all look at the same noise levels.
"""

from limbeck.engine import Paper, Recipe
from limbeck.objectives import DMD, GAN, Critic, Fake
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import AS_GOOD_AS_TEACHER
from limbeck.recipes.parts import TIMES, generator


def recipe(problem: Generative, steps: int = 1_200) -> Recipe:
    critic = Critic(times=TIMES)
    gan = GAN(critic=critic, times=TIMES, critic_steps=2, feature_weight=0.3)
    dmd = DMD(fake=Fake(critic=critic), times=TIMES, critic_steps=2)
    return Recipe(
        stages=(generator("dmd2", dmd + 0.3 * gan, steps=steps),),
        paper=Paper("2405.14867", "Yin et al. 2024"),
        claim=AS_GOOD_AS_TEACHER,
    )
