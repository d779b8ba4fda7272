"""Consistency distillation: every point of a teacher's trajectory maps to its end. arXiv 2303.01469."""

from limbeck.diffusion import Karras
from limbeck.engine import EMA, Adam, Claim, Cosine, Paper, Recipe, Stage
from limbeck.objectives import Consistency
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import frechet_at_steps
from limbeck.students import FromTeacher


def recipe(problem: Generative, steps: int = 2_000) -> Recipe:
    return Recipe(
        stages=(
            Stage(
                name="consistency",
                steps=steps,
                student=FromTeacher(ratios=(80.0,)),
                objective=Consistency(times=Karras()),
                optim={"default": Adam(lr=5e-4, betas=(0.9, 0.99), schedule=Cosine())},
                ema=EMA(decay=0.995),
            ),
        ),
        paper=Paper("2303.01469", "Song et al. 2023"),
        claim=Claim(
            text="one step ≤ the Fréchet distance of the teacher in 5 Euler steps",
            check=frechet_at_steps(5),
            bound=1.0,
            on="digits",
        ),
    )
