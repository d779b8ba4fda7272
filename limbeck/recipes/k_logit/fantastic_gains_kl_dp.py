"""KL with data partitioning: a trained student takes from a weaker teacher what that knows better. arXiv 2310.17653.

The student has learned from five labels a class; the teacher, of another kind, from three others and for a short while,
and is wrong half as often again. On images without labels the student follows whoever is surer, the teacher or itself
as it was. KL to the teacher alone makes it worse; by KL to the mean of both it is 1.2 × as often wrong.

The paper's networks have learned from the same images, and its labels say best who knows better; here there are none.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from limbeck.engine import Adam, Claim, Cosine, Dataset, Objective, Paper, Prior, Recipe, Source, Stage
from limbeck.objectives import KD, CrossEntropy, PartitionedKD
from limbeck.problems.digits import jittered, split
from limbeck.problems.digits_classify import DigitsClassify
from limbeck.problems.networks import ConvNet
from limbeck.recipes.claims import beats
from limbeck.recipes.parts import learner
from limbeck.rng import Rng


def convolutions(problem: DigitsClassify, prior: Prior) -> nn.Module:
    """A network of another kind than the problem's own."""
    return ConvNet(classes=problem.classes)


def others(problem: DigitsClassify, prior: Prior, each: int = 3) -> Source:
    """Three labelled images of each class that the student has not seen."""
    x, y, _, _ = split()
    order = Rng(("others",)).uniform(len(y)).argsort()
    order = order[~torch.isin(order, problem.rows)]
    rows = torch.cat([order[y[order] == k][:each] for k in range(problem.classes)])
    return jittered(x[rows], y[rows])


def images(problem: DigitsClassify, prior: Prior) -> Source:
    """All images, without labels."""
    return Dataset(x=problem.unlabelled)


def labelled(problem: DigitsClassify, prior: Prior) -> Source:
    """The few with labels."""
    return problem.source


def again(problem: DigitsClassify, prior: Prior) -> nn.Module:
    """The student as it was, to learn on."""
    return copy.deepcopy(prior.student("before")).requires_grad_(True)


def both(problem: DigitsClassify, prior: Prior) -> dict[str, nn.Module]:
    """The weaker teacher, and the student as it was."""
    return {name: prior.student(name) for name in ("teacher", "before")}


def transfer(objective: Objective, **settings: Any) -> Callable[[Stage], Stage]:
    """A change of the last stage to another objective; what comes before stays."""
    return lambda stage: replace(stage, objective=objective, **settings) if stage.name == "transfer" else stage


def recipe(problem: DigitsClassify, steps: int = 500) -> Recipe:
    low = {"default": Adam(lr=1e-3, schedule=Cosine())}
    return Recipe(
        stages=(
            learner("before", CrossEntropy(), steps=steps),
            learner("teacher", CrossEntropy(), steps=150, student=convolutions, data=others),
            learner(
                "transfer",
                PartitionedKD(labels=False),
                steps=300,
                student=again,
                teacher=both,
                data=images,
                optim=low,
            ),
        ),
        paper=Paper("2310.17653", "Roth et al. 2023"),
        claim=Claim(
            text="from a weaker teacher: mean held-out error ≤ 0.9 × the lesser of those of as many ticks more on the "
            "labels, and of as many of KL to the teacher alone",
            check=beats(transfer(CrossEntropy(), data=labelled), transfer(KD(temperature=1.0, alpha=1.0))),
            bound=0.9,
            on="digits-classify",
            seeds=5,
            mean=True,
        ),
    )
