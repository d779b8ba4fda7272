"""ESD: a critic that forgets the view in part lets views of one object differ, instead of all fronts. arXiv 2401.00909.

Where a problem has no cameras, the condition of a particle takes the place of the view. The critic learns without the
condition in half of the ticks, as often as with it.
"""

from dataclasses import replace

import torch
from torch import nn

from limbeck.diffusion import CFG, Annealed, Uniform
from limbeck.engine import Adam, Claim, Cosine, Paper, Recipe, Stage
from limbeck.evaluate.metrics import mode_entropy
from limbeck.objectives import ESD, VSD, Critic, Fake
from limbeck.problems.problem import Generative
from limbeck.problems.views2d import Views2D
from limbeck.recipes.claims import against
from limbeck.recipes.parts import particles
from limbeck.rng import Rng
from limbeck.students import FromCameras, FromNoise, Views
from limbeck.teachers import Trained

TIMES = Annealed(first=Uniform(lo=0.3, hi=0.6), last=Uniform(hi=0.2))


def by_view(stage: Stage) -> Stage:
    """VSD, λ = 0: the same critic, always asked for the view."""
    objective = stage.objective
    assert isinstance(objective, ESD) and isinstance(objective.fake, Fake)
    return replace(stage, objective=VSD(fake=replace(objective.fake, guidance=None), times=objective.times))


@torch.no_grad()
def sameness(student: nn.Module, problem: Generative, seed: int) -> float:
    """e^−H with H the entropy of views over modes: 1 if all views are alike; infinite if a view is at no mode."""
    assert isinstance(student, Views) and isinstance(problem, Views2D)
    draw = student.draw(student.size, None, Rng(seed))
    there = problem.agrees(draw.x, draw.cond).all()
    return torch.tensor(-mode_entropy(draw.x, problem.teacher.means)).exp().item() if there else torch.inf


def recipe(problem: Generative, steps: int = 600) -> Recipe:
    critic = Critic(times=TIMES, rank=8 if isinstance(problem.teacher, Trained) else None, dropout=0.5)
    objective = ESD(fake=Fake(critic=critic, guidance=CFG(scale=0.5)), times=TIMES)
    student = FromCameras(scale=0.1) if isinstance(problem, Views2D) else FromNoise()
    optim = {"default": Adam(lr=0.02, schedule=Cosine()), "critic": Adam(lr=2e-3, schedule=Cosine())}
    return Recipe(
        stages=(particles("esd", objective, steps=steps, student=student, optim=optim),),
        paper=Paper("2401.00909", "Wang et al. 2024"),
        claim=Claim(
            text="e^−H of the entropy of views over modes is at most 0.75 × that of VSD, and every view is at a mode",
            check=against(by_view, sameness),
            bound=0.75,
            on="views2d",
        ),
    )
