"""ADD: a GAN on frozen features of clean samples, and a pull to what the teacher makes of them. arXiv 2311.17042.

One step of the four, on points in the plane. The features are the teacher's at its cleanest level, since there is no
second pretrained network (DINOv2 in the paper); the pull weighs 1 (2.5).
"""

from dataclasses import replace

from limbeck.diffusion import LogNormal
from limbeck.engine import Claim, Paper, Recipe
from limbeck.objectives import GAN, R1, Hinge, Redenoised
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import against
from limbeck.recipes.parts import generator, need_network


def recipe(problem: Generative, steps: int = 400) -> Recipe:
    need_network(problem, "add")
    clean, penalty = LogNormal(mean=-4.0, std=0.0), R1(weight=0.1, at="features")
    gan = GAN(on="teacher", times=clean, loss=Hinge(), penalty=penalty, apart=True)
    pull = Redenoised(times=LogNormal(mean=-0.5, std=1.0))
    return Recipe(
        stages=(generator("add", gan + 1.0 * pull, steps=steps),),
        paper=Paper("2311.17042", "Sauer et al. 2023"),
        claim=Claim(
            text="one step ≤ 0.6 × the sliced Wasserstein distance of the same run by the distillation term alone",
            check=against(lambda stage: replace(stage, objective=pull)),
            bound=0.6,
            on="mixture2d-network",
        ),
    )
