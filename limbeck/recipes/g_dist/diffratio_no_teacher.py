"""DiffRatio: one step without a teacher's score, by a classifier of noised data and samples. arXiv 2502.08005.

The classifier is a network of its own, told the noise level; g is in units of ε, since its slope is worst where the
noise is greatest. It takes two steps to one of the student, which starts as the teacher does where that is a network.
"""

from dataclasses import replace

from limbeck.engine import Claim, Paper, Recipe, Stage
from limbeck.objectives import DMD, GAN, Critic, DiffRatio, Fake, LogRatio, Weight
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import against
from limbeck.recipes.parts import TIMES, generator


def by_scores(stage: Stage) -> Stage:
    """The same by the teacher's exact score and a critic's."""
    return replace(stage, objective=DMD(fake=Fake(critic=Critic(times=TIMES)), times=TIMES, critic_steps=2))


def recipe(problem: Generative, steps: int = 400) -> Recipe:
    ratio = LogRatio(gan=GAN(on="own", times=TIMES, critic_steps=2))
    objective = DiffRatio(real=ratio, times=TIMES, weight=Weight(sigma=0.0), critic_steps=2)
    return Recipe(
        stages=(generator("diffratio", objective, steps=steps),),
        paper=Paper("2502.08005", "Zhang et al. 2025"),
        claim=Claim(
            text="one step ≤ 2.5 × the sliced Wasserstein distance of the same run by DMD with exact teacher scores",
            check=against(by_scores),
            bound=2.5,
            on="mixture2d",
        ),
    )
