"""LumiNet: logits are seen against the batch, class by class, before they are compared. arXiv 2310.03669."""

from limbeck.engine import Claim, Paper, Recipe
from limbeck.objectives import KD, CrossEntropy, LumiNet
from limbeck.problems.problem import Classification
from limbeck.recipes.claims import beats, by
from limbeck.recipes.parts import learner


def recipe(problem: Classification, steps: int = 1_000) -> Recipe:
    return Recipe(
        stages=(learner("luminet-kd", KD() + LumiNet(), steps=steps),),
        paper=Paper("2310.03669", "Hossain et al. 2023"),
        claim=Claim(
            text="mean held-out error ≤ 0.85 × that by labels alone, which plain KD is as well",
            check=beats(by(CrossEntropy())),
            bound=0.85,
            on="digits-classify",
            seeds=5,
            mean=True,
        ),
    )
