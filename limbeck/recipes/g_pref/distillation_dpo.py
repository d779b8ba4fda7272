"""Distillation-DPO: of two samples, the one that a metric prefers and the other are matched apart. arXiv 2504.11447.

One step on points in the plane; the metric says on which side of a line a sample is, and has no slope. The weights are
0.3 at winners and 1.7 at losers. The published 1 and −1, with a critic for each side, push samples out of what is
preferred and losers away from the teacher: see `DistillationDPO`. The paper's teacher has been tuned by DPO before.
"""

from dataclasses import replace
from math import inf

from torch import nn

from limbeck.diffusion import LogNormal
from limbeck.engine import Claim, Paper, Recipe, Trial
from limbeck.evaluate.comparison import fresh, student_of
from limbeck.objectives import DMD, Critic, DistillationDPO, Fake, Region
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import by, rerun
from limbeck.recipes.parts import generator

TIMES = LogNormal(mean=-0.2, std=1.2)
DPO = DistillationDPO(
    preference=Region(along=(1.0, 0.3)), win=0.3, lose=1.7, times=TIMES, critic_times=TIMES, critic_steps=2
)


def recipe(problem: Generative, steps: int = 400) -> Recipe:
    return Recipe(
        stages=(generator("distillation-dpo", DPO, steps=steps, lr=2e-3),),
        paper=Paper("2504.11447", "Zhao et al. 2025"),
        claim=Claim(
            text="≤ 0.9 × as many samples as with DMD are not preferred, at ≥ 0.9 × its accuracy, and more than with "
            "DMD where winners and losers change places",
            check=less_of_the_other,
            bound=0.9,
            on="mixture2d",
        ),
    )


def less_of_the_other(trial: Trial) -> float:
    """The share that is not preferred over that of DMD; infinite where accuracy falls or the exchange lowers it."""
    dmd = DMD(fake=Fake(critic=Critic(times=TIMES)), times=TIMES, shape=(), critic_steps=DPO.critic_steps)
    changes = by(dmd, batch=512), by(replace(DPO, win=1.7, lose=0.3))  # as many samples, and critics learn from as many
    students = [rerun(trial, change) for change in changes]
    (ours, right), (plain, accuracy), (other, _) = (judged(student, trial) for student in (trial.student, *students))
    return ours / plain if right >= 0.9 * accuracy and other > plain else inf


def judged(student: nn.Module, trial: Trial) -> tuple[float, float]:
    """The share of samples that are not preferred, and of those that are what their condition asks for."""
    noise, cond, rng = fresh(trial.problem, 5000, trial.seed)
    x = student_of(student)(noise, cond, rng).x
    return 1 - DPO.preference(x, cond).mean().item(), trial.problem.agrees(x, cond).double().mean().item()
