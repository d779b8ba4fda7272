"""VSD: particles descend the difference of two scores, the teacher's and that of their own critic. arXiv 2305.16213.

Without guidance (7.5 in the paper), so that the teacher's own distribution is the goal, and from small noise levels on
(0.4 of the clock; 0.98), since the critic of a few particles is best where they still differ.
"""

from dataclasses import replace

from limbeck.diffusion import Annealed, Uniform
from limbeck.engine import Adam, Claim, Cosine, Paper, Recipe, Stage
from limbeck.objectives import SDS, VSD, Critic, Fake
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import against, variance_error
from limbeck.recipes.parts import particles
from limbeck.teachers import Trained

TIMES = Annealed(first=Uniform(hi=0.4), last=Uniform(hi=0.2))


def without_critic(stage: Stage) -> Stage:
    """SDS at the same noise levels."""
    return replace(stage, objective=SDS(times=TIMES), optim={"default": stage.optim["default"]})


def recipe(problem: Generative, steps: int = 1_200) -> Recipe:
    critic = Critic(times=TIMES, rank=8 if isinstance(problem.teacher, Trained) else None, dropout=0.1)
    optim = {"default": Adam(lr=0.02, schedule=Cosine()), "critic": Adam(lr=2e-3, schedule=Cosine())}
    objective = VSD(fake=Fake(critic=critic), times=TIMES)
    return Recipe(
        stages=(particles("vsd", objective, steps=steps, optim=optim),),
        paper=Paper("2305.16213", "Wang et al. 2023"),
        claim=Claim(
            text="the variance of particles around modes is at most 0.2 × as far from the teacher's as that of SDS",
            check=against(without_critic, variance_error),
            bound=0.2,
            on="mixture2d",
        ),
    )
