"""f-distill: DMD2 under the Jensen-Shannon divergence, by the ratio that its discriminator tells. arXiv 2502.15681.

Settings are those of `dmd2`: one pass from σ = 1 on digits, two steps of the critic to one of the student. At this size
the divergence makes no difference that seeds do not: 0.70 ± 0.11 here, 0.69 ± 0.03 by DMD2, whose divergence has h = 1.
Without the GAN, which covers modes by itself, recall is .87 for forward KL and .88 to .89 for Jensen-Shannon, .84 to
.86 for the reverse divergence (two seeds, 1 800 ticks of 128).
"""

from limbeck.engine import Paper, Recipe
from limbeck.objectives import GAN, ByRatio, Critic, Fake, FDistill, JensenShannon
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import AS_GOOD_AS_TEACHER
from limbeck.recipes.parts import TIMES, generator


def recipe(problem: Generative, steps: int = 1_200) -> Recipe:
    critic = Critic(times=TIMES)
    gan = GAN(critic=critic, times=TIMES, critic_steps=2, feature_weight=0.3)
    ratio = ByRatio(divergence=JensenShannon(), gan=gan)
    matching = FDistill(ratio=ratio, fake=Fake(critic=critic), times=TIMES, critic_steps=2)
    return Recipe(
        stages=(generator("f-distill", matching + 0.3 * gan, steps=steps),),
        paper=Paper("2502.15681", "Xu et al. 2025"),
        claim=AS_GOOD_AS_TEACHER,
    )
