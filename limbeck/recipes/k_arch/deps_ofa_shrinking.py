"""DεpS: a network for every width, whose narrow passes begin when the full width is half trained. arXiv 2407.06167.

The full width learns from labels. From half of the run on, the narrowest and two random widths follow it, with a weight
that grows from a tenth to 1: the paper's small learning rates for subnets, which by plain gradient descent is the same.
Until then a tick is one pass, so that the run costs 2.5 passes a tick; baselines have ticks for as many passes.

What shows here is that narrow passes must not begin too late. That they should not begin at once did not show: with as
many passes, in-place distillation from the first tick on, and labels at all widths, are about as good (0.9 to 1.1 ×).
"""

from dataclasses import dataclass
from math import inf

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
    narrow, full, late = InPlaceKD(widths=WIDTHS[:1], drawn=2), CrossEntropy(), Delayed(start=0.9, until=0.95)
    labels = WidthCrossEntropy(widths=WIDTHS[:1], drawn=2)

    def check(trial: Trial) -> float:
        ticks = {each: round(2.5 * steps / each) for each in (1.3, 4.0)}  # as many passes
        at_end = by(full + late * narrow, steps=ticks[1.3])
        at_once = (by(full + objective, steps=ticks[4.0]) for objective in (narrow, labels))
        nets = (trial.student, *(rerun(trial, change) for change in (at_end, *at_once)))
        ours, end, *others = (mean_error(net, problem, trial.seed) for net in nets)
        return ours / end if ours <= 1.3 * min(others) else inf

    optim = {"default": Adam(lr=2e-3)}
    stage = learner("deps", full + Delayed() * narrow, steps=steps, student=supernet, batch=64, optim=optim)
    return Recipe(
        stages=(stage,),
        paper=Paper("2407.06167", "Annavajjala et al. 2024"),
        claim=Claim(
            text="mean held-out error over five widths ≤ 0.9 × that with narrow passes in the last tenth alone, for "
            "as many passes; at most 1.3 × those with narrow passes from the first tick on, by labels or in place",
            check=check,
            bound=0.9,
            on="digits-noisy",
            seeds=5,
            mean=True,
        ),
    )
