"""LELP: with two classes a teacher can say little, so its last features split each into five. arXiv 2409.20449.

The classes are even and odd digits, and nobody says which digit it is. A teacher has learned them from all images; the
student learns from fifty of them, by ten subclasses of which five sum to the teacher's own probability of even.

The gain is over labels. Plain KD to the teacher's two probabilities is as good here, wrong on 3 to 6 % like this, for
images and their views say enough; the paper's gain over it is on texts. That a class is split by a softmax of
projections is a form of our own, see `Subclasses`.
"""

from dataclasses import replace

import torch
from torch import nn

from limbeck.engine import Adam, Claim, Cosine, Paper, Prior, Recipe, Source, Stage, Trial
from limbeck.objectives import KD, CrossEntropy
from limbeck.problems.digits import DigitFeatures, split
from limbeck.problems.digits import jittered as views
from limbeck.problems.digits_classify import DigitsClassify
from limbeck.problems.networks import MLP
from limbeck.problems.problem import evaluating
from limbeck.recipes.parts import learner
from limbeck.teachers import Subclasses, marginal


def everything(problem: DigitsClassify, prior: Prior) -> Source:
    """All images, even or odd."""
    x, y, _, _ = split()
    return views(x, y % 2)


def few(problem: DigitsClassify, prior: Prior) -> Source:
    """The fifty labelled ones, even or odd."""
    x, y = problem.train
    return views(x, y % 2)


def convolutions(problem: DigitsClassify, prior: Prior) -> nn.Module:
    """The teacher before training."""
    net = DigitFeatures()
    net.head = nn.Linear(net.size, 2)
    return net


def two(problem: DigitsClassify, prior: Prior) -> nn.Module:
    """A student that knows of classes alone."""
    return MLP(size=64, classes=2)


def ten(problem: DigitsClassify, prior: Prior) -> nn.Module:
    """The same with five outputs for each."""
    return MLP(size=64, classes=10)


def teacher(problem: DigitsClassify, prior: Prior) -> nn.Module:
    """The teacher as it is."""
    return prior.student("teacher")


def split_teacher(problem: DigitsClassify, prior: Prior) -> nn.Module:
    """The teacher, its classes split."""
    return Subclasses(prior.student("teacher"), "head", problem.unlabelled, each=5, temperature=2.0)


@torch.no_grad()
def wrong(student: nn.Module, problem: DigitsClassify) -> float:
    """How often even is taken for odd or odd for even, held out; at least once."""
    x, y = problem.heldout
    with evaluating(student):
        chosen = marginal(student(x), 2).argmax(1)
    return max((chosen != y % 2).double().mean().item(), 1 / len(y))


def over(trial: Trial) -> float:
    """The error over that of the same student with two outputs, by labels alone."""
    last = trial.recipe.stages[-1]
    assert isinstance(last, Stage)
    plain = replace(last, objective=CrossEntropy(), student=two)
    baseline = plain.start(trial.problem, trial.prior, trial.seed).finish()
    return wrong(trial.student, trial.problem) / wrong(baseline, trial.problem)


def recipe(problem: DigitsClassify, steps: int = 500) -> Recipe:
    adam = {"default": Adam(lr=3e-3, schedule=Cosine())}
    return Recipe(
        stages=(
            learner("teacher", CrossEntropy(), steps=300, student=convolutions, data=everything, optim=adam),
            learner("lelp", KD(temperature=1.0, alpha=1.0), steps=steps, student=ten, teacher=split_teacher, data=few),
        ),
        paper=Paper("2409.20449", "Loo et al. 2024"),
        claim=Claim(
            text="two classes: mean held-out error ≤ 0.9 × that by labels alone, which plain KD is as well",
            check=over,
            bound=0.9,
            on="digits-classify",
            seeds=5,
            mean=True,
        ),
    )
