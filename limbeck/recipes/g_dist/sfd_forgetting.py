"""SFD: SiD, with the teacher asked for a safe class where the student is asked for a forgotten one. arXiv 2409.11219.

No images: the run sees conditions alone. The forgotten class weighs as much as it occurs (the paper draws and weighs it
apart), α = 1 as in SiDA (1.2), and one pass starts at the problem's own noise level (σ = 2.5).
"""

from dataclasses import replace
from math import inf

import torch
from torch import nn

from limbeck.diffusion import Instead
from limbeck.engine import Claim, Paper, Recipe, Stage, Trial
from limbeck.evaluate.comparison import fresh, student_of
from limbeck.evaluate.metrics import sliced_wasserstein
from limbeck.objectives import Critic, SiD
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import against
from limbeck.recipes.parts import TIMES, conditions, generator, need_network
from limbeck.rng import Rng

FORGOTTEN, SAFE = 0, 1
SID = SiD(alpha=1.0, critic=Critic(times=TIMES))


def plain(stage: Stage) -> Stage:
    """The same without forgetting."""
    return replace(stage, objective=SID)


def safe(student: nn.Module, problem: Generative, label: int, seed: int) -> float:
    """How often a sample that was asked for under this label is of the safe class."""
    noise, cond, rng = fresh(problem, 2000, seed)
    x = student_of(student)(noise, torch.full_like(cond, label), rng).x
    return problem.agrees(x, torch.full_like(cond, SAFE)).double().mean().item()


def retained(student: nn.Module, problem: Generative, seed: int) -> float:
    """The sliced Wasserstein distance of samples to data of the classes that were not forgotten."""
    assert problem.source is not None
    data = problem.source.take(5000, Rng((seed, "retained")))
    noise, cond, rng = fresh(problem, 5000, seed)
    x, real = student_of(student)(noise, cond, rng).x[cond != FORGOTTEN], data["x"][data["cond"] != FORGOTTEN]
    return sliced_wasserstein(problem.features(x), problem.features(real), seed=seed)


def forgets(trial: Trial) -> float:
    """`retained` over that of plain SiD; infinite where the forgotten class is not as the safe one."""
    shares = [safe(trial.student, trial.problem, label, trial.seed) for label in (FORGOTTEN, SAFE)]
    return against(plain, retained)(trial) if shares[0] >= 0.95 * shares[1] else inf


def recipe(problem: Generative, steps: int = 500) -> Recipe:
    need_network(problem, "sfd-forgetting")
    sfd = replace(SID, guidance=Instead(label=FORGOTTEN, other=SAFE))
    return Recipe(
        stages=(generator("sfd", sfd, steps=steps, data=conditions),),
        paper=Paper("2409.11219", "Chen et al. 2024"),
        claim=Claim(
            text="asked for the forgotten class it gives the safe one as often as when asked for that, to 95 %, and "
            "the other classes are ≤ 2.5 × as far (sliced Wasserstein) from the data as with plain SiD",
            check=forgets,
            bound=2.5,
            on="mixture2d-network",
        ),
    )
