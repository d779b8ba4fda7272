"""A user's own file: a classifier, and a recipe with state of every kind that runs in a moment."""

from torch import Tensor, nn

from limbeck import EMA, KD, Adam, Claim, Cosine, Paper, Recipe, Stage
from limbeck.engine.recipe import Prior
from limbeck.problems.problem import Classification
from limbeck.rng import Rng, seeded


class Quick(Classification):
    """Points in the plane, in three classes that a linear teacher tells apart."""

    name = "quick"
    threads = 1
    classes = 3

    def __init__(self) -> None:
        with seeded("quick"):
            self.teacher_network = nn.Linear(2, 3)
        self.train, self.heldout = self.points("train"), self.points("heldout")

    def points(self, name: str) -> tuple[Tensor, Tensor]:
        x = Rng(("quick", name)).normal(64, 2)
        return x, self.teacher_network(x).argmax(1)

    @property
    def teacher(self) -> nn.Module:
        return self.teacher_network

    def network(self) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 3))


def problem() -> Quick:
    """The problem, as the command line makes it."""
    return Quick()


def student(problem: Classification, prior: Prior) -> nn.Module:
    """An untrained network."""
    return problem.network()


def recipe(problem: Classification, steps: int = 40, rate: float = 1e-2) -> Recipe:
    """One stage, with dropout, running statistics, moments, a schedule and a moving average."""
    stage = Stage(
        name="learn",
        steps=steps,
        student=student,
        objective=KD(alpha=0.5),
        optim={"default": Adam(lr=rate, schedule=Cosine(warmup=0.25), clip=1.0)},
        batch=16,
        ema=EMA(decay=0.9),
    )
    claim = Claim(text="learns", check=lambda trial: 1 - trial.problem.accuracy(trial.student), bound=0.9, on="quick")
    return Recipe(stages=(stage,), paper=Paper("0000.00000", "nobody"), claim=claim)
