"""PLD: a ranking loss by label and teacher in the place of cross-entropy, with no weight to tune. arXiv 2506.12542.

The teacher is so sure that its confidence is taken at temperature 4, as in the KD beside which it is measured.
"""

from limbeck.engine import Claim, Paper, Recipe
from limbeck.objectives import KD, PLD, CrossEntropy
from limbeck.problems.problem import Classification
from limbeck.recipes.claims import beats, by, surprise
from limbeck.recipes.parts import learner


def recipe(problem: Classification, steps: int = 1_000) -> Recipe:
    return Recipe(
        stages=(learner("pld", PLD(temperature=4.0), steps=steps),),
        paper=Paper("2506.12542", "Roos et al. 2025"),
        claim=Claim(
            text="held-out −ln p of the label ≤ 0.9 × the lesser of those by labels alone and by plain KD",
            check=beats(by(CrossEntropy()), by(KD()), figure=surprise),
            bound=0.9,
            on="digits-classify",
            seeds=5,
        ),
    )
