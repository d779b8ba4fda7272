"""DεpS: a network for every width, whose narrow passes begin when the full width is half trained. arXiv 2407.06167.

The full width learns from labels. From half of the run on, the narrowest and two random widths follow it, with a weight
that grows from a tenth to 1: the paper's small learning rates for subnets, which by plain gradient descent is the same.
Until then a tick is one pass, so that the whole run costs 2.5 passes a tick, and baselines with four have fewer ticks.

Delay saves passes here, not error: with as many passes from the first tick on, narrow widths are about as good. Later
than half is far worse.
"""

from dataclasses import dataclass

from torch import nn

from limbeck.engine import Adam, Claim, Paper, Prior, Recipe, Trial
from limbeck.engine.schedule import Schedule
from limbeck.errors import in_range
from limbeck.objectives import CrossEntropy, InPlaceKD, WidthCrossEntropy
from limbeck.problems.problem import Classification
from limbeck.recipes.claims import by, error, rerun
from limbeck.recipes.parts import learner
from limbeck.students import Slimmable

WIDTHS = (0.125, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, kw_only=True)
class Delayed(Schedule):
    """0 before ``start``, then ε, and in a straight line to 1 at ``until``.

    >>> [Delayed(start=0.5, until=0.75)(p) for p in (0.4, 0.5, 0.75)]
    [0.0, 0.1, 1.0]
    """

    start: float = 0.5
    until: float = 0.75
    epsilon: float = 0.1

    def __post_init__(self) -> None:
        in_range("start", self.start, 0, 1)
        in_range("until", self.until, self.start + 1e-9, 1)
        in_range("epsilon", self.epsilon, 0, 1)

    def __call__(self, progress: float) -> float:
        if progress < self.start:
            return 0.0
        return min(1.0, self.epsilon + (1 - self.epsilon) * (progress - self.start) / (self.until - self.start))


def supernet(problem: Classification, prior: Prior, width: int = 96) -> Slimmable:
    """A perceptron whose two hidden layers have any width."""
    size = problem.heldout[0][0].numel()
    hidden = nn.Linear(size, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
    return Slimmable(nn.Flatten(), *hidden, nn.Linear(width, problem.classes))


def mean_error(student: nn.Module, problem: Classification, seed: int) -> float:
    """Held-out error, mean over widths."""
    assert isinstance(student, Slimmable)
    return sum(error(student.at(student.widths(share)), problem, seed) for share in WIDTHS) / len(WIDTHS)


def recipe(problem: Classification, steps: int = 800) -> Recipe:
    narrow, full, early = InPlaceKD(widths=WIDTHS[:1], drawn=2), CrossEntropy(), 5 * steps // 8

    def check(trial: Trial) -> float:
        labels = WidthCrossEntropy(widths=WIDTHS[:1], drawn=2)
        changes = by(full + labels, steps=early), by(full + narrow, steps=early), by(full + late * narrow)
        others = [rerun(trial, change) for change in changes]
        ours, plain, at_once, at_end = (mean_error(net, problem, trial.seed) for net in (trial.student, *others))
        return ours / min(plain, at_once / 0.9, at_end)

    late = Delayed(start=0.9, until=0.95)
    optim = {"default": Adam(lr=2e-3)}
    stage = learner("deps", full + Delayed() * narrow, steps=steps, student=supernet, batch=64, optim=optim)
    return Recipe(
        stages=(stage,),
        paper=Paper("2407.06167", "Annavajjala et al. 2024"),
        claim=Claim(
            text="mean held-out error over five widths ≤ 0.95 × the least of: labels at the same widths, with as many "
            "passes; narrow passes of the last tenth alone; and 1/0.9 of narrow passes from the first tick on",
            check=check,
            bound=0.95,
            on="digits-noisy",
            seeds=5,
            mean=True,
        ),
    )
