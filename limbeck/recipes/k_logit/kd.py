"""Knowledge distillation, patient and consistent: teacher and student see the same mixed views. arXiv 1503.02531.

No labels are used, mixtures are heavy, and views are never the same twice, after Beyer et al. 2021, arXiv 2106.05237.
In as few ticks as these, mixing is no better than KD on views that are not mixed: 0.7 to 1.2 × its error.
"""

from limbeck.engine import Claim, Mixup, Paper, Prior, Recipe, Source
from limbeck.objectives import KD, CrossEntropy
from limbeck.problems.problem import Classification
from limbeck.recipes.claims import beats, by
from limbeck.recipes.parts import learner


def mixed(problem: Classification, prior: Prior) -> Source:
    """The problem's data, mixed."""
    return Mixup(problem.source, classes=problem.classes)


def plain(problem: Classification, prior: Prior) -> Source:
    """The problem's data as they are."""
    return problem.source


def recipe(problem: Classification, steps: int = 800) -> Recipe:
    return Recipe(
        stages=(learner("kd", KD(alpha=1.0), steps=steps, data=mixed),),
        paper=Paper("1503.02531", "Hinton et al. 2015"),
        claim=Claim(
            text="mean held-out error ≤ 0.85 × the lesser of those by labels alone, mixed or not",
            check=beats(by(CrossEntropy(), data=plain), by(CrossEntropy())),
            bound=0.85,
            on="digits-vit",
            seeds=5,
            mean=True,
        ),
    )
