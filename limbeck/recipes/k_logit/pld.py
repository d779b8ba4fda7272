"""PLD: a ranking loss by label and teacher in the place of cross-entropy, with no weight to tune. arXiv 2506.12542."""

from limbeck.engine import Claim, Paper, Recipe
from limbeck.objectives import KD, PLD, CrossEntropy
from limbeck.problems.problem import Classification
from limbeck.recipes.claims import beats
from limbeck.recipes.parts import learner


def recipe(problem: Classification, steps: int = 1_000) -> Recipe:
    return Recipe(
        stages=(learner("pld", PLD(), steps=steps),),
        paper=Paper("2506.12542", "Roos et al. 2025"),
        claim=Claim(
            text="held-out error ≤ 1.1 × the lesser of those by labels alone and by plain KD",
            check=beats(CrossEntropy(), KD()),
            bound=1.1,
            on="digits-classify",
        ),
    )
