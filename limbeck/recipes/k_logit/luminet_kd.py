"""LumiNet: logits are seen against the batch, class by class, before they are compared. arXiv 2310.03669."""

from limbeck.engine import Claim, Paper, Recipe
from limbeck.objectives import KD, LumiNet
from limbeck.problems.problem import Classification
from limbeck.recipes.claims import better_than_labels
from limbeck.recipes.parts import learner


def recipe(problem: Classification, steps: int = 1_000) -> Recipe:
    return Recipe(
        stages=(learner("luminet-kd", KD() + LumiNet(), steps=steps),),
        paper=Paper("2310.03669", "Hossain et al. 2023"),
        claim=Claim(
            text="mean held-out error ≤ 0.85 × that by labels alone, and on no seed 1.5 × plain KD's",
            check=better_than_labels,
            bound=0.85,
            on="digits-classify",
            seeds=5,
            mean=True,
        ),
    )
