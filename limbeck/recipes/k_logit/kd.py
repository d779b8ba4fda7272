"""Knowledge distillation: a student learns from its teacher's softened opinion of every class. arXiv 1503.02531."""

from limbeck.engine import Adam, Claim, Cosine, Paper, Recipe, Stage
from limbeck.objectives import KD
from limbeck.problems.problem import Classification
from limbeck.recipes.claims import error_ratio, student_network


def recipe(problem: Classification, steps: int = 1_000) -> Recipe:
    optim = {"default": Adam(lr=5e-3, schedule=Cosine())}
    return Recipe(
        stages=(Stage(name="kd", steps=steps, batch=128, student=student_network, objective=KD(), optim=optim),),
        paper=Paper("1503.02531", "Hinton et al. 2015"),
        claim=Claim(
            text="held-out error ≤ 0.9 × that of the same training on labels alone",
            check=error_ratio,
            bound=0.9,
            on="digits-classify",
        ),
    )
