"""SinKD: a batch of predictions is carried to the teacher's by optimal transport, beside KD. arXiv 2402.17110."""

from limbeck.engine import Claim, Paper, Recipe
from limbeck.objectives import KD, SinKD
from limbeck.problems.problem import Classification
from limbeck.recipes.claims import better_than_labels
from limbeck.recipes.parts import learner


def recipe(problem: Classification, steps: int = 1_000) -> Recipe:
    return Recipe(
        stages=(learner("sinkd", KD() + 0.3 * SinKD(), steps=steps),),
        paper=Paper("2402.17110", "Cui et al. 2024"),
        claim=Claim(
            text="mean held-out error ≤ 0.85 × that by labels alone, and on no seed 1.5 × plain KD's",
            check=better_than_labels,
            bound=0.85,
            on="digits-classify",
            seeds=5,
            mean=True,
        ),
    )
