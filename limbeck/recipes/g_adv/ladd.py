"""LADD: a GAN in which the frozen teacher's features of noised samples judge, on data it made. arXiv 2403.12015.

One step of the four, on points in the plane: every block of the teacher has a head with a hinge loss of its own. Noise
levels are logit-normal about 0 (1 in the paper, for images, whose noise hides less), with R1 on the heads.
"""

from copy import deepcopy
from dataclasses import replace

from torch import nn

from limbeck.diffusion import LogNormal
from limbeck.engine import Claim, Make, Paper, Prior, Recipe
from limbeck.objectives import GAN, R1, Hinge
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import against
from limbeck.recipes.g_traj.pairs_regression import make_pairs, read_pairs
from limbeck.recipes.parts import generator, need_network
from limbeck.rng import seeded


def recipe(problem: Generative, steps: int = 300) -> Recipe:
    need_network(problem, "ladd")
    times, penalty = LogNormal(mean=0.0, std=1.0), R1(weight=0.5, at="features")
    gan = GAN(on="teacher", times=times, loss=Hinge(), penalty=penalty, apart=True)
    return Recipe(
        stages=(Make(name="pairs", make=make_pairs), generator("ladd", gan, steps=steps, data=read_pairs)),
        paper=Paper("2403.12015", "Sauer et al. 2024"),
        claim=Claim(
            text="one step ≤ 0.6 × the sliced Wasserstein distance of the same GAN on an untrained network's features",
            check=against(lambda stage: replace(stage, teacher=untrained)),
            bound=0.6,
            on="mixture2d-network",
        ),
    )


def untrained(problem: Generative, prior: Prior) -> nn.Module:
    """A network like the teacher, with weights as they were before training."""
    other = deepcopy(problem.teacher)
    with seeded(problem.name, "untrained"):
        for module in other.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    return other
