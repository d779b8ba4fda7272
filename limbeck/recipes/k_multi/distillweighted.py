"""DistillWeighted: teachers from other tasks, each weighed by how its features order the few labels. arXiv 2304.12314.

Five small networks have learned other tasks from all images: which of the digits below five it is, which of the others,
whether it is even, whether it is bright, whether it is darker left or right. The ten digits have five labels each. On
these every source gets a new linear head, and a similarity; the student follows the weighted mean of what they say.

Labels enter by heads and weights alone, where the paper adds cross-entropy on them. Sources that have nothing to do
with digits get next to no weight; equal weights do nearly as well all the same, wrong on 8.5 to 10 % where these are on
8 to 10 %. The nearest source alone, which is DistillNearest, was worse than labels: none has learned all ten digits.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf

import torch
from torch import Tensor, nn

from limbeck.engine import Adam, Claim, Cosine, Dataset, Paper, Prior, Recipe, Source, Stage, Trial, distill
from limbeck.objectives import KD, CrossEntropy
from limbeck.problems.digits import jitter, jittered, split
from limbeck.problems.digits_classify import DigitsClassify
from limbeck.problems.networks import ConvNet
from limbeck.recipes.claims import error
from limbeck.recipes.parts import learner
from limbeck.rng import Rng, seeded
from limbeck.teachers import Committee, task_similarity, task_weights

Task = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(images, digits) → images and labels of another task."""


def low(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Which of 0 … 4."""
    return x[y < 5], y[y < 5]


def high(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Which of 5 … 9."""
    return x[y > 4], y[y > 4] - 5


def even(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Even or odd."""
    return x, y % 2


def bright(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Brighter than the mean or not."""
    return x, (x.mean((1, 2, 3)) > x.mean()).long()


def side(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Brighter left or right."""
    return x, (x[..., :4].mean((1, 2, 3)) > x[..., 4:].mean((1, 2, 3))).long()


TASKS: tuple[Task, ...] = (low, high, even, bright, side)


def source(task: Task, steps: int) -> Stage:
    """A network that learns another task from all images."""

    def data(problem: DigitsClassify, prior: Prior) -> Source:
        return jittered(*task(*split()[:2]))

    def network(problem: DigitsClassify, prior: Prior) -> nn.Module:
        return ConvNet(classes=len(task(*split()[:2])[1].unique()))

    return learner(task.__name__, CrossEntropy(), steps=steps, student=network, data=data)


class Headed(nn.Module):
    """A source under a new linear head."""

    def __init__(self, net: nn.Module, head: nn.Linear):
        super().__init__()
        self.net, self.head = net, head

    def features(self, x: Tensor) -> Tensor:
        """What its own head saw, [B, D]."""
        assert isinstance(self.net, ConvNet)
        return self.net.blocks(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the task at hand, [B, C]."""
        return self.head(self.features(x))


def headed(problem: DigitsClassify, net: nn.Module, views: int = 16) -> Headed:
    """A source whose new head has learned the few labels."""
    x, y = problem.train
    with seeded("head"), torch.no_grad():
        made = Headed(net, nn.Linear(16, problem.classes))
        h = torch.cat([made.features(jitter(x, Rng(("head", k)))) for k in range(views)])
    data, optim = Dataset(x=h, y=y.repeat(views)), Adam(lr=0.02, schedule=Cosine())
    distill(None, made.head, CrossEntropy(), data, steps=200, batch=128, optim=optim).finish()
    return made


def committee(weigh: Callable[[Sequence[float]], Sequence[float]]) -> Callable[[DigitsClassify, Prior], nn.Module]:
    """All sources, weighed by a function of their similarities."""

    def teacher(problem: DigitsClassify, prior: Prior) -> nn.Module:
        sources = [headed(problem, prior.student(task.__name__)) for task in TASKS]
        x, y = problem.train
        with torch.no_grad():
            similarities = [task_similarity(one.features(x), y) for one in sources]
        return Committee(sources, weigh(similarities))

    return teacher


def images(problem: DigitsClassify, prior: Prior) -> Source:
    """All images, without labels."""
    return Dataset(x=problem.unlabelled)


def labelled(problem: DigitsClassify, prior: Prior) -> Source:
    """Views of the few with labels."""
    return problem.source


def alike(similarities: Sequence[float]) -> Sequence[float]:
    """The same weight for every source."""
    return [1.0] * len(similarities)


def better(trial: Trial) -> float:
    """The error over that by labels alone; infinite where it is a third more than that by sources of equal weight."""
    last = trial.recipe.stages[-1]
    assert isinstance(last, Stage)
    others = (replace(last, objective=CrossEntropy(), data=labelled), replace(last, teacher=committee(alike)))
    students = (trial.student, *(other.start(trial.problem, trial.prior, trial.seed).finish() for other in others))
    ours, plain, same = (error(student, trial.problem, trial.seed) for student in students)
    return ours / plain if ours <= 4 / 3 * same else inf


def recipe(problem: DigitsClassify, steps: int = 600) -> Recipe:
    objective = KD(temperature=1.0, alpha=1.0)
    return Recipe(
        stages=(
            *(source(task, steps=250) for task in TASKS),
            learner("distillweighted", objective, steps=steps, teacher=committee(task_weights), data=images),
        ),
        paper=Paper("2304.12314", "Borup et al. 2023"),
        claim=Claim(
            text="mean held-out error ≤ 0.95 × that by the few labels alone, and nowhere above 4/3 × that by sources "
            "that all weigh the same",
            check=better,
            bound=0.95,
            on="digits-classify",
            seeds=5,
            mean=True,
        ),
    )
