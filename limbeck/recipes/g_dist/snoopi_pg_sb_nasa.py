"""SNOOPI: random guidance on teacher and critic while training, negative attention when sampling. arXiv 2412.02687.

PG-SB draws the scale of guidance in every tick, one for both, so that it cancels where they agree. NASA takes the
attention to a negative prompt off that to the prompt, in a student that was not trained for it. The teacher is exact
and the critic a network of its own (adapters); scales are U[1, 3], and a fifth of the prompts are empty.
"""

from math import inf

import torch
from torch import Tensor

from limbeck.diffusion import NegativeAttention, RandomCFG
from limbeck.engine import Claim, Paper, Recipe, Trial
from limbeck.objectives import VSD, Critic, Fake, Weight
from limbeck.problems.prompted2d import Prompted2D
from limbeck.recipes.parts import TIMES, conditions, generator
from limbeck.rng import Rng
from limbeck.students import OneStep


def near(x: Tensor, problem: Prompted2D) -> tuple[Tensor, Tensor]:
    """The class of the nearest mode, and whether it is within four standard deviations of it, each [B]."""
    assert problem.teacher.labels is not None
    distance, mode = torch.cdist(x, problem.teacher.means[:8]).min(1)
    return problem.teacher.labels[mode], distance < 4 * 0.08


@torch.no_grad()
def avoids(trial: Trial, scale: float = 1.0) -> float:
    """How often an empty prompt gives a class to stay away from, over how often without saying so; mean over classes.

    Infinite where fewer than 0.85 times as many samples are near a mode.
    """
    student, problem, ratios, good = trial.student, trial.problem, list[Tensor](), list[Tensor]()
    assert isinstance(student, OneStep) and isinstance(problem, Prompted2D)
    noise = Rng((trial.seed, "negative")).normal(4000, 2)
    empty = torch.full((len(noise),), problem.empty)
    before, right = near(student.first(noise, empty), problem)
    for label in range(problem.empty):
        away = NegativeAttention(scale=scale, label=label)(student.denoiser)
        x = OneStep(away, shape=problem.shape, ratio=problem.ratio).first(noise, empty)
        after, close = near(x, problem)
        ratios.append((after == label).sum() / (before == label).sum())
        good.append(close.sum() / right.sum())
    return torch.stack(ratios).mean().item() if torch.stack(good).mean() >= 0.85 else inf


def recipe(problem: Prompted2D, steps: int = 250, lo: float = 1.0, hi: float = 3.0) -> Recipe:
    guidance = RandomCFG(lo=lo, hi=hi)
    fake = Fake(critic=Critic(times=TIMES), guidance=guidance)
    vsd = VSD(fake=fake, guidance=guidance, times=TIMES, weight=Weight(sigma=1.0, alpha=-1.0))
    return Recipe(
        stages=(generator("pg-sb", vsd, steps=steps, lr=2e-3, data=conditions),),
        paper=Paper("2412.02687", "Nguyen et al. 2024"),
        claim=Claim(
            text="NASA alone: an empty prompt gives a class ≤ 0.5 × as often where it is told to stay away from it, "
            "with ≥ 0.85 × as many samples near a mode",
            check=avoids,
            bound=0.5,
            on="prompted2d",
        ),
    )
