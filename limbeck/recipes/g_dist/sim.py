"""SIM: score implicit matching by the pseudo-Huber distance of scores, in one step. arXiv 2410.16794.

The distance divides each example's gradient by how far its scores are apart, and is quadratic below 1 (1e-3 in
the paper). One pass from σ = 1 on digits. The paper uses no data: a diffusion GAN is added here, as in `sid-fewstep`.
"""

from limbeck.engine import Paper, Recipe
from limbeck.objectives import GAN, SIM, Critic, PseudoHuber
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import AS_GOOD_AS_TEACHER
from limbeck.recipes.parts import TIMES, generator


def recipe(problem: Generative, steps: int = 2_200) -> Recipe:
    critic = Critic(times=TIMES)
    sim = SIM(critic=critic, times=TIMES, distance=PseudoHuber(c=1.0))
    gan = GAN(critic=critic, times=TIMES, feature_weight=0.3)
    return Recipe(
        stages=(generator("sim", sim + 0.3 * gan, steps=steps, batch=128),),
        paper=Paper("2410.16794", "Luo et al. 2024"),
        claim=AS_GOOD_AS_TEACHER,
    )
