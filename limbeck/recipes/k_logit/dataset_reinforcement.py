"""Dataset reinforcement: a teacher is asked once, of views that can be made again, and never in training.

Of each of the few labelled images 200 views are drawn. Their parameters and the teacher's likeliest five of ten classes
are kept in 60 bytes a view, and any student learns from that store as from labels, at the cost of plain training.
arXiv 2303.08983.

The paper's teacher is an ensemble and its softmax is at temperature 1; this one is a single network, and so sure that
at temperature 1 its labels are no better than those there are. With 50 views instead of 200 the error is a tenth more.
"""

from math import inf
from pathlib import Path

from torch import nn

from limbeck.engine import Claim, Labels, Make, Paper, Prior, Recipe, Replayed, Source, Trial, reinforce_data
from limbeck.objectives import KD, CrossEntropy
from limbeck.problems.digits import Jitter
from limbeck.problems.digits_classify import DigitsClassify
from limbeck.recipes.claims import by, error, rerun
from limbeck.recipes.parts import learner


def asked(problem: DigitsClassify, prior: Prior, folder: Path, seed: int) -> None:
    """The store: all that the teacher says."""
    reinforce_data(folder, problem.teacher, problem.train[0], Jitter(), copies=200, k=5, temperature=4.0, seed=seed)


def stored(problem: DigitsClassify, prior: Prior) -> Source:
    """Views from the store with what was said of them."""
    labels = Labels(prior.folder("store"), classes=problem.classes)
    return Replayed(labels, problem.train[0], Jitter())


def nobody(problem: DigitsClassify, prior: Prior) -> None:
    """No teacher is there to be asked."""


def fresh(problem: DigitsClassify, prior: Prior) -> Source:
    """Views that are never the same twice, with labels."""
    return problem.source


def online(problem: DigitsClassify, prior: Prior) -> nn.Module:
    """The teacher, asked at every tick."""
    return problem.teacher


def without_teacher(trial: Trial) -> float:
    """The error over that by labels alone; infinite where it is a third more than that of KD with the teacher there."""
    others = (by(CrossEntropy(), data=fresh), by(KD(), data=fresh, teacher=online))
    students = [trial.student, *(rerun(trial, change) for change in others)]
    ours, plain, kd = (error(student, trial.problem, trial.seed) for student in students)
    return ours / plain if ours <= 4 / 3 * kd else inf


def recipe(problem: DigitsClassify, steps: int = 1_000) -> Recipe:
    return Recipe(
        stages=(
            Make(name="store", make=asked),
            learner("reinforced", CrossEntropy(), steps=steps, data=stored, teacher=nobody),
        ),
        paper=Paper("2303.08983", "Faghri et al. 2023"),
        claim=Claim(
            text="with no teacher in training: mean held-out error ≤ 0.8 × that of as many ticks on the labels, and "
            "nowhere above 4/3 × that of KD that asks its teacher at every tick",
            check=without_teacher,
            bound=0.8,
            on="digits-classify",
            seeds=5,
            mean=True,
        ),
    )
