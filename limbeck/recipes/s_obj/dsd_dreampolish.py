"""DreamPolish: domain score distillation, classifier and variational guidance weighed apart. arXiv 2411.01602.

The paper's geometry stages have no use in the plane.
"""

from collections.abc import Callable
from dataclasses import replace
from math import inf, log

import torch
from torch import nn

from limbeck.diffusion import Annealed, Uniform
from limbeck.engine import Adam, Claim, Cosine, Objective, Paper, Recipe, Stage, Trial
from limbeck.objectives import SDS, VSD, Critic, DomainScoreDistillation, Fake
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import against, mode_variance
from limbeck.recipes.parts import particles
from limbeck.students import Particles
from limbeck.teachers import GaussianMixture

TIMES = Annealed(first=Uniform(hi=0.4), last=Uniform(hi=0.2))
FAKE = Fake(critic=Critic(times=TIMES))
PLAIN, VARIATIONAL = SDS(times=TIMES), VSD(times=TIMES, fake=FAKE)
DOMAIN = DomainScoreDistillation(times=TIMES, fake=FAKE, classifier=0.3)


def under(objective: Objective) -> Callable[[Stage], Stage]:
    """The stage under another objective."""
    student = Adam(lr=0.02, schedule=Cosine())
    critic = {} if objective == PLAIN else {"critic": Adam(lr=2e-3, schedule=Cosine())}
    return lambda stage: replace(stage, objective=objective, optim={"default": student, **critic})


def doubt(student: nn.Module, problem: Generative, seed: int) -> float:
    """Mean −ln p(c | x) in nats, by the teacher at σ/α = 0.1."""
    teacher = problem.teacher
    assert isinstance(student, Particles) and isinstance(teacher, GaussianMixture) and teacher.labels is not None
    x, cond = student.x.detach(), student.cond.tree()
    t = teacher.process.at_ratio(torch.full((len(x),), 0.1, dtype=torch.float64))
    nats = teacher.log_prob(x, t) - teacher.log_prob(x, t, cond) + log(len(teacher.labels.unique()))
    return nats.mean().item()


def variance_error(student: nn.Module, problem: Generative, seed: int) -> float:
    """|v − 1| with v the variance of particles around modes over the teacher's."""
    return abs(mode_variance(student, problem) - 1)


def surer(trial: Trial) -> float:
    """Doubt over that of VSD; infinite where the variance of particles is no nearer the teacher's than with SDS."""
    kept = against(under(PLAIN), variance_error)(trial) < 1
    return against(under(VARIATIONAL), doubt)(trial) if kept else inf


def recipe(problem: Generative, steps: int = 600) -> Recipe:
    stage = under(DOMAIN)(particles("dsd", DOMAIN, steps=steps))
    return Recipe(
        stages=(stage,),
        paper=Paper("2411.01602", "Cheng et al. 2024"),
        claim=Claim(
            text="doubt about the class is at most 0.4 × that of VSD, and variance nearer the teacher's than with SDS",
            check=surer,
            bound=0.4,
            on="mixture2d",
        ),
    )
