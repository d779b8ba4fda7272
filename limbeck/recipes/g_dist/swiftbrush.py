"""SwiftBrush: variational score distillation of a one-step generator, with adapters as critic. arXiv 2312.05239.

No images: the run sees conditions alone. The adapters have rank 16 (64) and lie on the teacher's own frozen weights.
"""

from dataclasses import replace

from limbeck.engine import Claim, Paper, Recipe
from limbeck.objectives import SDS, VSD, Critic, Fake
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import against
from limbeck.recipes.parts import TIMES, conditions, generator, need_network


def recipe(problem: Generative, steps: int = 600) -> Recipe:
    need_network(problem, "swiftbrush")
    vsd = VSD(fake=Fake(critic=Critic(times=TIMES, rank=16)), times=TIMES)
    return Recipe(
        stages=(generator("swiftbrush", vsd, steps=steps, data=conditions),),
        paper=Paper("2312.05239", "Nguyen & Tran 2023"),
        claim=Claim(
            text="one step, without images, ≤ 0.5 × the sliced Wasserstein distance of the same run by SDS",
            check=against(lambda stage: replace(stage, objective=SDS(times=TIMES))),
            bound=0.5,
            on="mixture2d-network",
        ),
    )
