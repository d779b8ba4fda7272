"""GloReDi: what a network makes of few views of an image is to be what another makes of more. arXiv 2308.08463.

The teacher learns to restore digits from six parallel views, the student from three, starting as a copy of the teacher.
Features behind a Fourier mix, of which each sees the whole image, are to point where the teacher's do, and in their
fine band to be nearer to the teacher's of that image than to those of others and of the poor image. Features follow;
restored images are not better for it at this size, errors are 1.00 to 1.06 × those of plain training on two seeds. In
the paper they are better; its bands and negatives are others.
"""

from dataclasses import replace
from math import inf

import torch
from torch import nn

from limbeck.engine import Claim, Paper, Prior, Recipe, Stage, Trial
from limbeck.engine.taps import tap
from limbeck.objectives import BetterViews, Restoration, direction
from limbeck.problems.digits_views import DigitsViews, Restorer, seen_through
from limbeck.recipes.claims import rerun
from limbeck.recipes.parts import learner

TAP = "encoder"


def taught(problem: DigitsViews, prior: Prior) -> nn.Module:
    """The network that has learned from more views."""
    return prior.student("teacher")


def copied(problem: DigitsViews, prior: Prior) -> nn.Module:
    """Another network that starts as the one that has learned from more views."""
    student = Restorer()
    student.load_state_dict(prior.student("teacher").state_dict())
    return student


def nobody(problem: DigitsViews, prior: Prior) -> None:
    """No teacher."""


@torch.no_grad()
def astray(student: nn.Module, trial: Trial) -> float:
    """Mean `direction` between features of held-out images, the student's of few views and the teacher's of more."""
    x, y = trial.problem.heldout
    found = list[torch.Tensor]()
    teacher = trial.prior.student("teacher")
    for net, seen in ((student, x), (teacher, seen_through(trial.problem.better, y))):
        with tap(net, TAP) as features:
            net(seen)
        found.append(features[TAP])
    return direction(*found).mean().item()


def nearer(trial: Trial) -> float:
    """`astray` over that of plain training from the same start; infinite where images are worse by 10 %."""

    def plain(stage: Stage) -> Stage:
        return stage if stage.name == "teacher" else replace(stage, objective=Restoration())

    other = rerun(trial, plain)
    worse = trial.problem.error(trial.student) > 1.1 * trial.problem.error(other)
    return inf if worse else astray(trial.student, trial) / astray(other, trial)


def recipe(problem: DigitsViews, steps: int = 200) -> Recipe:
    objective = Restoration() + 0.03 * BetterViews(tap=TAP, weight=0.3)
    shared = {"steps": steps, "batch": 64}
    return Recipe(
        stages=(
            learner("teacher", Restoration(field="pair"), teacher=nobody, **shared),
            learner("gloredi", objective, student=copied, teacher=taught, **shared),
        ),
        paper=Paper("2308.08463", "Li et al. 2023"),
        claim=Claim(
            text="mean held-out 1 − cos to what the teacher makes of twice the views ≤ 0.65 × that of plain training "
            "from the same start, square error of images ≤ 1.1 ×",
            check=nearer,
            bound=0.65,
            on="digits-views",
            seeds=5,
            mean=True,
        ),
    )
