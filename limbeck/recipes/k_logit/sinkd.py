"""SinKD: a batch of predictions is carried to the teacher's by optimal transport, beside KD. arXiv 2402.17110."""

from limbeck.engine import Claim, Paper, Recipe
from limbeck.objectives import KD, CrossEntropy, SinKD
from limbeck.problems.problem import Classification
from limbeck.recipes.claims import beats, by
from limbeck.recipes.parts import learner


def recipe(problem: Classification, steps: int = 1_000) -> Recipe:
    return Recipe(
        stages=(learner("sinkd", KD() + 0.3 * SinKD(), steps=steps),),
        paper=Paper("2402.17110", "Cui et al. 2024"),
        claim=Claim(
            text="mean held-out error ≤ 0.85 × that by labels alone, which plain KD is as well",
            check=beats(by(CrossEntropy())),
            bound=0.85,
            on="digits-classify",
            seeds=5,
            mean=True,
        ),
    )
