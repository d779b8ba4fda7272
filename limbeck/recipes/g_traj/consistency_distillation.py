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
                student=FromTeacher(ratios=(10.0,)),
                objective=Consistency(times=Karras(sigma_min=0.02, sigma_max=10.0), interval=1 / 8, c=0.03),
                optim={"default": Adam(lr=1e-3, betas=(0.9, 0.99), schedule=Cosine(warmup=0.05))},
                ema=EMA(decay=0.99),
            ),
        ),
        paper=Paper("2303.01469", "Song et al. 2023"),
        claim=Claim(
            text="one step ≤ 1.25 × the Fréchet distance of the teacher in 10 DDIM steps from the same σ = 10",
            check=frechet_at_steps(10),
            bound=1.25,
            on="digits",
        ),
    )
