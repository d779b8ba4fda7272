"""EMD: short Langevin runs on noise and latents correct samples, and the student regresses onto them. arXiv 2405.16852.

K = 4 steps (up to 16 in the paper) of 0.1 on noise and 0.002 on latents; no images: the run sees conditions alone.
"""

from dataclasses import replace

from limbeck.engine import Claim, Paper, Recipe, Stage
from limbeck.objectives import EMD, Critic, Fake
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import against
from limbeck.recipes.parts import TIMES, conditions, generator, need_network

EM = EMD(fake=Fake(critic=Critic(times=TIMES)), times=TIMES, latent_step=0.002)


def noisy(stage: Stage) -> Stage:
    """The same without noise cancellation."""
    return replace(stage, objective=replace(EM, cancel=False))


def recipe(problem: Generative, steps: int = 120) -> Recipe:
    need_network(problem, "emd-em-distillation")
    return Recipe(
        stages=(generator("emd", EM, steps=steps, data=conditions),),
        paper=Paper("2405.16852", "Xie et al. 2024"),
        claim=Claim(
            text="one step, without images, ≤ 0.5 × the sliced Wasserstein distance of the same run without noise "
            "cancellation",
            check=against(noisy),
            bound=0.5,
            on="mixture2d-network",
        ),
    )
