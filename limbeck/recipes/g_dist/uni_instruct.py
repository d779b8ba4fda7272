"""Uni-Instruct: the Jensen-Shannon divergence, expanded into what it gains at every noise level. arXiv 2505.20755.

Its gradient is the derived one (the released code lacks a part) at frozen sampling. The ratio is told by the
discriminator of the GAN that is added. Little noise is left out: a critic's error, divided by the level's square,
drowns the rest there.
"""

from limbeck.diffusion import LogNormal
from limbeck.engine import Paper, Recipe
from limbeck.objectives import GAN, ByRatio, Critic, JensenShannon, UniInstruct
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import AS_GOOD_AS_TEACHER
from limbeck.recipes.parts import generator

TIMES = LogNormal(mean=0.0, std=0.8)


def recipe(problem: Generative, steps: int = 2_100) -> Recipe:
    critic = Critic(times=TIMES)
    gan = GAN(critic=critic, times=TIMES, feature_weight=0.3)
    ratio = ByRatio(divergence=JensenShannon(), gan=gan)
    matching = UniInstruct(critic=critic, times=TIMES, ratio=ratio, alpha=1.0)
    return Recipe(
        stages=(generator("uni-instruct", matching + gan, steps=steps, batch=128),),
        paper=Paper("2505.20755", "Wang et al. 2025"),
        claim=AS_GOOD_AS_TEACHER,
    )
