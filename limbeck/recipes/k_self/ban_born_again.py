"""Born-again networks: each generation learns from the one before, which is of its own kind. arXiv 1805.04770.

The first learns from labels of which some are wrong; the second and third from labels and their elder.
"""

from collections.abc import Callable

from torch import nn

from limbeck.engine import Claim, Paper, Prior, Recipe
from limbeck.objectives import KD, CrossEntropy
from limbeck.problems.problem import Classification
from limbeck.recipes.claims import beats, by
from limbeck.recipes.parts import learner


def elder(name: str) -> Callable[[Classification, Prior], nn.Module]:
    """The result of an earlier stage, as the teacher."""
    return lambda problem, prior: prior.student(name)


def recipe(problem: Classification, steps: int = 600) -> Recipe:
    objective = KD(temperature=1.0, alpha=0.5)
    return Recipe(
        stages=(
            learner("first", CrossEntropy(), steps=steps),
            learner("second", objective, steps=steps, teacher=elder("first")),
            learner("third", objective, steps=steps, teacher=elder("second")),
        ),
        paper=Paper("1805.04770", "Furlanello et al. 2018"),
        claim=Claim(
            text="mean held-out error of the third generation ≤ 0.95 × the lesser of those by labels alone in as many "
            "ticks as one generation takes, and as all take",
            check=beats(by(CrossEntropy()), by(CrossEntropy(), steps=3 * steps)),
            bound=0.95,
            on="digits-noisy",
            seeds=5,
            mean=True,
        ),
    )
