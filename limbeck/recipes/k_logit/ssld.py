"""SSLD: no labels, only the Jensen-Shannon divergence to the teacher, on examples that it chose. arXiv 2103.05959.

Where labels are few, images without any are many: equally many of each class, by the teacher's confidence. Here the
images are what helps, not the divergence: with the teacher's hard labels on as many at random the error is 0.6 of it.
"""

import torch

from limbeck.engine import Claim, Dataset, Paper, Prior, Recipe, Source
from limbeck.objectives import CrossEntropy, JensenShannonKD
from limbeck.problems.digits_classify import DigitsClassify
from limbeck.recipes.claims import beats, by
from limbeck.recipes.parts import learner


@torch.no_grad()
def mined(problem: DigitsClassify, prior: Prior, each: int = 80) -> Source:
    """Of all images without labels, those that the teacher is surest of, equally many of each class."""
    x = problem.unlabelled
    sure, chosen = problem.teacher(x).softmax(1).max(1)
    order = sure.argsort(descending=True)
    rows = [order[chosen[order] == k][:each] for k in range(problem.classes)]
    return Dataset(x=x[torch.cat(rows)])


def labelled(problem: DigitsClassify, prior: Prior) -> Source:
    """The few images with labels."""
    return problem.source


def recipe(problem: DigitsClassify, steps: int = 1_000) -> Recipe:
    return Recipe(
        stages=(learner("ssld", JensenShannonKD(), steps=steps, data=mined),),
        paper=Paper("2103.05959", "Cui et al. 2021"),
        claim=Claim(
            text="mean held-out error ≤ 0.7 × that of as many steps on the few labels there are",
            check=beats(by(CrossEntropy(), data=labelled)),
            bound=0.7,
            on="digits-classify",
            seeds=5,
            mean=True,
        ),
    )
