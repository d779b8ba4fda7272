"""Consistent3D: noise that stays, and the teacher against itself one step of its ODE ahead. arXiv 2401.09050.

Levels fall from 0.35 to 0.02 of the clock (1.0 to 0.02), and guidance is 7.5 (101 down to 51), for small samples hide
little noise.
"""

from dataclasses import replace
from math import inf

from limbeck.diffusion import CFG, Annealed, Uniform
from limbeck.engine import Claim, Linear, Paper, Recipe, Stage, Trial
from limbeck.objectives import CDS, SDS, ScoreDistillation, Stepped
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import against, pulls, to_mode
from limbeck.recipes.parts import particles

SAMPLING = CDS(
    fake=Stepped(to=Linear(first=0.25, last=0.02)),
    guidance=CFG(scale=7.5),
    times=Annealed(first=Uniform(lo=0.3, hi=0.35), last=Uniform(lo=0.03, hi=0.08)),
)
RANDOM = SDS(guidance=SAMPLING.guidance, times=SAMPLING.times, weight=SAMPLING.weight)


def without_step(stage: Stage) -> Stage:
    """SDS under noise that stays as well."""
    return replace(stage, objective=replace(RANDOM, noise=SAMPLING.noise))


def unrest(objective: ScoreDistillation, trial: Trial) -> float:
    """The variance of what pulls at a sample over 24 ticks, over the square of its mean."""
    pulled = pulls(objective, trial, ticks=24)
    return (pulled.var(0).sum() / pulled.mean(0).square().sum()).item()


def steadily_nearer(trial: Trial) -> float:
    """The distance to modes over that `without_step`; infinite unless the pull varies 0.2 × as much as that of SDS."""
    steady = unrest(SAMPLING, trial) <= 0.2 * unrest(RANDOM, trial)
    return against(without_step, to_mode)(trial) if steady else inf


def recipe(problem: Generative, steps: int = 600) -> Recipe:
    return Recipe(
        stages=(particles("cds", SAMPLING, steps=steps),),
        paper=Paper("2401.09050", "Wu et al. 2024"),
        claim=Claim(
            text="the pull varies ≤ 0.2 × as much as in SDS, and ends ≤ 0.8 × as far from modes as SDS of equal noise",
            check=steadily_nearer,
            bound=0.8,
            on="mixture2d",
        ),
    )
