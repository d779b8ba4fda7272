"""MSDCRD: windows of the student's maps find the teacher's among those of the batch, beside KD. arXiv 2502.05835.

Windows of 2 × 2 places and the whole map are contrasted, each with its own place in other images, and channels with
channels. The teacher is a transformer whose tokens are a map too. The paper sorts windows before it contrasts them;
here all count alike. What shows at this size is that features agree more, window by window; in accuracy there is
nothing beyond plain KD: errors of 0.10 to 0.15 by either on three seeds, 0.15 to 0.16 by labels alone.
"""

from math import inf

import torch
from torch import Tensor, nn

from limbeck.engine import Claim, Paper, Recipe, Trial
from limbeck.engine.taps import tap
from limbeck.objectives import KD, CrossEntropy, MultiScaleContrast, cka, windowed
from limbeck.problems.problem import Classification
from limbeck.recipes.claims import by, error, rerun
from limbeck.recipes.parts import learner

STUDENT, TEACHER = "blocks.1", "blocks.2"


def multi_scale(*windows: int) -> MultiScaleContrast:
    """Contrast of windows of these sides."""
    return MultiScaleContrast(pairs={STUDENT: TEACHER}, windows=windows, channels=0.5)


@torch.no_grad()
def local(net: nn.Module, name: str, x: Tensor) -> Tensor:
    """A network's features of 2 × 2 windows of images, less the mean of the place, [R·B, C]."""
    with tap(net, name) as seen:
        net(x)
    maps = seen[name] if seen[name].dim() == 4 else seen[name].mT.unflatten(2, (4, 4))
    windows = windowed(maps, (2,))
    return (windows - windows.mean(1, keepdim=True)).flatten(0, 1)


def unlike(student: nn.Module, problem: Classification, seed: int) -> float:
    """1 − `cka` of windows of held-out images, the student's and the teacher's: it needs no projector."""
    x = problem.heldout[0]
    return 1 - cka(local(student, STUDENT, x), local(problem.teacher, TEACHER, x)).item()


def nearer(trial: Trial) -> float:
    """`unlike` over the least of KD's and of KD with the whole map alone; infinite where labels alone err less."""
    whole, kd, labels = (rerun(trial, by(objective)) for objective in (KD() + multi_scale(0), KD(), CrossEntropy()))
    if error(trial.student, trial.problem, trial.seed) > 0.97 * error(labels, trial.problem, trial.seed):
        return inf
    ours, *theirs = (unlike(student, trial.problem, trial.seed) for student in (trial.student, whole, kd))
    return ours / min(theirs)


def recipe(problem: Classification, steps: int = 400) -> Recipe:
    return Recipe(
        stages=(learner("msdcrd", KD() + multi_scale(0, 2), steps=steps),),
        paper=Paper("2502.05835", "Wang et al. 2025"),
        claim=Claim(
            text="mean held-out 1 − CKA of 2 × 2 windows ≤ 0.985 × the lesser of those by plain KD and by KD with "
            "contrast of the whole map, error ≤ 0.97 × that by labels alone, which plain KD has as well",
            check=nearer,
            bound=0.985,
            on="digits-vit",
            seeds=5,
            mean=True,
        ),
    )
