"""Few-step SiD with a diffusion GAN, by default in one step, without guidance. arXiv 2505.12674.

A draw picks one step for the whole batch, so the outputs of all steps are matched alike. Neither teacher nor critic
is guided, which is Zero-CFG. One pass, from σ = 1 on digits;
``--student.ratios "(1.0, 0.3)"`` makes two. α = 1 as in SiDA.
"""

from limbeck.engine import Paper, Recipe
from limbeck.objectives import GAN, Critic, SiD
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import AS_GOOD_AS_TEACHER
from limbeck.recipes.parts import TIMES, generator


def recipe(problem: Generative, steps: int = 2_200) -> Recipe:
    critic = Critic(times=TIMES)
    gan = GAN(critic=critic, times=TIMES, feature_weight=0.3)
    return Recipe(
        stages=(
            generator("sid-fewstep", SiD(alpha=1.0, critic=critic, times=TIMES) + 0.3 * gan, steps=steps, batch=128),
        ),
        paper=Paper("2505.12674", "Zhou et al. 2025"),
        claim=AS_GOOD_AS_TEACHER,
    )
