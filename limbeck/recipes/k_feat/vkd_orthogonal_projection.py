"""V_kD: the student's features are turned to the teacher's, which are standardised, and never fitted. arXiv 2403.06213.

The projector has orthonormal rows, so that how examples lie to each other is the student's to learn. It stands beside
KD here, with which features win nothing sure at this size: in as many ticks a tenth is wrong by KD alone, with V_kD,
and with hints by a free linear projector; 0.15 is by labels alone, 0.13 with V_kD in the place of KD. So the claim is
of the constraint too: the trained projector leaves inner products as they are; a linear one all but replaces them.
"""

from math import inf

import torch

from limbeck.engine import Claim, Paper, Recipe, Stage, Trial
from limbeck.objectives import KD, CrossEntropy, VkD
from limbeck.problems.problem import Classification
from limbeck.recipes.claims import beats, by
from limbeck.recipes.parts import learner

LAST = "head:in"


@torch.no_grad()
def changed(stage: Stage, trial: Trial) -> float:
    """‖P·S·(P·S)ᵀ − S·Sᵀ‖/‖S·Sᵀ‖ of held-out features S and the projector P, when the stage is done."""
    with torch.enable_grad():
        (run := stage.start(trial.problem, trial.prior, trial.seed)).finish()
    projector = next(role for name, role in run.cast.roles.items() if "projector" in name).module
    assert isinstance(projector, torch.nn.ModuleList)  # one for each pair
    x = run.cast.ask("student", trial.problem.heldout[0]).features[LAST]
    one, two = (s @ s.T for s in (projector[0](x), x))
    return ((one - two).norm() / two.norm()).item()


def turned(trial: Trial) -> float:
    """The held-out error over that by labels alone; infinite where the projector changes inner products."""
    last = trial.recipe.stages[-1]
    assert isinstance(last, Stage)
    return beats(by(CrossEntropy()))(trial) if changed(last, trial) < 1e-5 else inf


def recipe(problem: Classification, steps: int = 500) -> Recipe:
    return Recipe(
        stages=(learner("vkd-orthogonal-projection", KD() + VkD(pairs={LAST: LAST}), steps=steps),),
        paper=Paper("2403.06213", "Miles et al. 2024"),
        claim=Claim(
            text="the trained projector changes held-out inner products by less than 1e-5 of them, and the mean "
            "held-out error is ≤ 0.85 × that by labels alone, which that of plain KD is as well",
            check=turned,
            bound=0.85,
            on="digits-vit",
            seeds=5,
            mean=True,
        ),
    )
