"""R0: a pretrained denoiser becomes a few-step generator by climbing a reward, held by its weights. arXiv 2503.13070.

Two steps on points in the plane. The reward is what a classifier of blurred points thinks of the class, which is
highest far out where no data are: without a hold on the weights it is climbed there. All weights learn (adapters in
the paper), and steps are drawn at random, so that each is rewarded (R0+).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from limbeck.engine import EMA, Adam, Claim, Linear, Paper, Recipe, Stage, Trial
from limbeck.engine.run import run_recipe
from limbeck.objectives import Preference, Reward
from limbeck.problems.mixture2d_network import Mixture2DNetwork
from limbeck.recipes.claims import transport
from limbeck.students import FromTeacher, RandomEta
from limbeck.tree import Tree


@dataclass(frozen=True, kw_only=True)
class Classified(Preference):
    """ln p(c | x) of a classifier that knows the eight modes blurred to a standard deviation ``blur``."""

    blur: float = 0.3

    def __call__(self, x: Tensor, cond: Tree) -> Tensor:
        teacher = Mixture2DNetwork().exact
        assert teacher.labels is not None
        near = -(torch.cdist(x, teacher.means.to(x)) ** 2) / (2 * self.blur**2)
        return near.masked_fill(teacher.labels != cond[:, None], -torch.inf).logsumexp(1) - near.logsumexp(1)


def recipe(problem: Mixture2DNetwork, steps: int = 300) -> Recipe:
    student = FromTeacher(ratios=(problem.ratio, problem.ratio / 4), kind=RandomEta)
    optim, objective = (
        {"default": Adam(lr=5e-4, betas=(0.9, 0.99), schedule=Linear())},
        Reward(reward=Classified(), hold=10.0),
    )
    return Recipe(
        stages=(Stage(name="r0", steps=steps, objective=objective, student=student, optim=optim, ema=EMA(decay=0.99)),),
        paper=Paper("2503.13070", "Luo et al. 2025"),
        claim=Claim(
            text="two steps ≤ 0.85 × the sliced Wasserstein distance of the teacher in them, and of the climb unheld",
            check=nearer_than_start_and_unheld,
            bound=0.85,
            on="mixture2d-network",
        ),
    )


def nearer_than_start_and_unheld(trial: Trial) -> float:
    """The distance to data over that of the student as it began, or of one that nothing holds, if that is nearer."""
    (stage,) = trial.recipe.stages
    assert isinstance(stage, Stage)
    unheld = replace(stage, objective=Reward(reward=Classified()))
    free = run_recipe(replace(trial.recipe, stages=(unheld,)), trial.problem, seed=trial.seed)
    # the stage makes one module here, never several
    students: tuple[nn.Module, ...] = (trial.student, stage.student(trial.problem, trial.prior), free.student)  # type: ignore[assignment]
    ours, start, other = (transport(student, trial.problem, trial.seed) for student in students)
    return ours / min(start, other)
