"""Reinforced teacher selection: for each image a policy chooses whom the student should follow. arXiv 2012.06048.

Three teachers know some of the digits each and mislead on all others, each in a way of its own. The policy comes
to choose those who are right, at temperature 4 with probability 0.99 and others with 0.07; by all three the error is
higher than by labels alone. It sees what a teacher loses by the label, as in the paper, and so needs labels. The reward
is a step ahead here, not the loss of a student that has learned from the batch; at temperature 4
what misleading teachers say of other digits
spoils what those who are right say.
"""

import torch
from torch import Tensor, nn

from limbeck.engine import Adam, Batch, Claim, Cosine, Drawn, Paper, Prior, Recipe, Source, Stage
from limbeck.objectives import KD, CrossEntropy, ReinforcedSelection
from limbeck.problems.digits import jittered, split
from limbeck.problems.digits_classify import DigitsClassify
from limbeck.recipes.claims import by, last_beats
from limbeck.recipes.parts import learner
from limbeck.rng import Rng
from limbeck.teachers import Ensemble

KNOWN = {"low": (0, 4), "middle": (4, 7), "high": (7, 10)}
"""First digit that each teacher knows, and the first after them that it does not."""


def told(name: str) -> Tensor:
    """What a teacher says of each digit, [10]."""
    (lo, hi), digits = KNOWN[name], torch.arange(10)
    return torch.where((digits >= lo) & (digits < hi), digits, (digits + 3 + [*KNOWN].index(name)) % 10)


def skewed(name: str) -> Source:
    """All images, with what a teacher says of them as labels."""
    views, says = jittered(*split()[:2]), told(name)

    def make(n: int, rng: Rng) -> Batch:
        batch = views.take(n, rng)
        return {"x": batch["x"], "y": says[batch["y"]]}

    return Drawn(make, fields=("x", "y"))


def taught(name: str, steps: int) -> Stage:
    """One of the teachers."""
    return learner(name, CrossEntropy(), steps=steps, data=lambda problem, prior: skewed(name))


def teachers(problem: DigitsClassify, prior: Prior) -> dict[str, nn.Module]:
    """All three by name."""
    return {name: prior.student(name) for name in KNOWN}


def average(problem: DigitsClassify, prior: Prior) -> nn.Module:
    """All three as one, nobody chosen."""
    return Ensemble(*teachers(problem, prior).values())


def recipe(problem: DigitsClassify, steps: int = 800, before: int = 500) -> Recipe:
    plain = {"default": Adam(lr=5e-3, schedule=Cosine())}
    optim = {**plain, "reinforcedselection policy": Adam(lr=2e-2)}
    everyone = KD(temperature=1.0, alpha=0.5)
    objective = ReinforcedSelection(teachers=tuple(KNOWN), temperature=1.0, alpha=0.5)
    return Recipe(
        stages=(
            *(taught(name, before) for name in KNOWN),
            learner("selected", objective, steps=steps, teacher=teachers, optim=optim),
        ),
        paper=Paper("2012.06048", "Yuan et al. 2020"),
        claim=Claim(
            text="mean held-out error ≤ 0.9 × the lesser of those by labels alone and by KD from all three",
            check=last_beats(by(CrossEntropy(), optim=plain), by(everyone, teacher=average, optim=plain)),
            bound=0.9,
            on="digits-classify",
            seeds=5,
            mean=True,
        ),
    )
