"""StableKD: blocks learn apart from the teacher's features, and are joined to one network bit by bit. arXiv 2312.13223.

The student is a plain perceptron of nine hidden layers, without norms or skips, which is slow to train from end to
end: a layer's gradient comes through all others. Three pieces of three layers have it easier, and by the time that
they are joined each is used to what comes in. On three normalised convolutions, which are quick to train, cutting does
not help: 0.15 to 0.2 is wrong after 400 ticks, against 0.11 by KD.
"""

from torch import nn

from limbeck.engine import Claim, Paper, Prior, Recipe
from limbeck.objectives import KD, CrossEntropy, StableKD
from limbeck.problems.networks import MLP
from limbeck.problems.problem import Classification
from limbeck.recipes.claims import beats, by
from limbeck.recipes.parts import learner

PAIRS = {"blocks.2": "blocks.0", "blocks.5": "blocks.1", "blocks.8": "blocks.2"}


def deep(problem: Classification, prior: Prior) -> nn.Module:
    """Nine hidden layers, one after the other."""
    return MLP(size=problem.train[0][0].numel(), classes=problem.classes, widths=(32,) * 9)


def recipe(problem: Classification, steps: int = 300) -> Recipe:
    objective = StableKD(pairs=PAIRS, until=0.6)
    return Recipe(
        stages=(learner("stablekd", objective, steps=steps, lr=2e-3, student=deep),),
        paper=Paper("2312.13223", "Kao et al. 2023"),
        claim=Claim(
            text="a deep plain student: mean held-out error ≤ 0.85 × the lesser of those by labels alone and by plain "
            "KD, from end to end in as many ticks",
            check=beats(by(CrossEntropy()), by(KD())),
            bound=0.85,
            on="digits-vit",
            seeds=5,
            mean=True,
        ),
    )
