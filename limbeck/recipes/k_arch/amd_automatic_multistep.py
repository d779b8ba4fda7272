"""AMD: an assistant between teacher and student is cut out of the teacher, and chosen by a figure. arXiv 2407.04208.

The teacher's channels are put in the order of what its loss changes by without them. Its narrow passes, all with the
same weights, learn from it together; the one whose accuracy falls least for the size that is saved becomes the
assistant, and the student learns from that, so that students are trained once.

Which assistant is chosen matters. That one is needed did not show: straight from the teacher the student errs on about
as many, and by labels alone on hardly more. Nor did the order: untrained, the first channels as they are do as well.
"""

from collections.abc import Callable
from dataclasses import replace
from math import inf

import torch
from torch import nn

from limbeck.engine import Claim, Paper, Prior, Recipe, Stage, Trial
from limbeck.errors import Incompatible
from limbeck.objectives import KD, InPlaceKD
from limbeck.problems.digits import DigitFeatures
from limbeck.problems.digits_classify import DigitsClassify
from limbeck.recipes.claims import error
from limbeck.recipes.parts import learner
from limbeck.rng import Rng
from limbeck.students import Slimmable, ranked, taylor_scores

SHARES = (0.2, 0.35, 0.5, 0.7)


def pruned(problem: DigitsClassify, prior: Prior) -> Slimmable:
    """The teacher as a slimmable network, its channels in falling order of `taylor_scores`."""
    teacher = problem.teacher
    if not isinstance(teacher, DigitFeatures):
        need, got = "a teacher that is a chain of convolutions", f"a {type(teacher).__name__}"
        raise Incompatible("amd-automatic-multistep", need=need, got=got, fit="digits-classify")
    net = Slimmable(*teacher.convs, nn.SiLU(), teacher.head).requires_grad_(True)
    x, y = problem.train
    return ranked(net, taylor_scores(net.eval(), x, y)).train()


def size(net: nn.Module) -> int:
    """Parameters."""
    return sum(p.numel() for p in net.parameters())


@torch.no_grad()
def slope(net: Slimmable, problem: DigitsClassify, share: float) -> float:
    """The negative performance-scale derivative −(accuracy lost)/(size saved) of a width, from the full one on.

    Accuracy is on views of the labelled images, size a share of the full width's parameters.
    """
    batch, narrow = problem.source.take(512, Rng(("slope",))), net.narrowed(net.widths(share))
    right = [(part(batch["x"]).argmax(1) == batch["y"]).double().mean().item() for part in (net, narrow)]
    return -(right[0] - right[1]) / (1 - size(narrow) / size(net))


def width(share: float | None = None) -> Callable[[DigitsClassify, Prior], nn.Module]:
    """What learned jointly at one width, by itself; at that of the largest `slope` by default."""

    def make(problem: DigitsClassify, prior: Prior) -> nn.Module:
        net = prior.student("joint")
        assert isinstance(net, Slimmable)
        chosen = share or max(SHARES, key=lambda each: slope(net, problem, each))
        return net.narrowed(net.widths(chosen))

    return make


def well_chosen(trial: Trial) -> float:
    """The student's held-out error over the mean of those of each assistant; infinite beyond 1.3 × without one."""
    last, problem = trial.recipe.stages[-1], trial.problem
    assert isinstance(last, Stage)

    def wrong(teacher: Callable[[DigitsClassify, Prior], nn.Module]) -> float:
        run = replace(last, teacher=teacher).start(problem, trial.prior, trial.seed)
        return error(run.finish(), problem, trial.seed)

    ours, every = error(trial.student, problem, trial.seed), [wrong(width(share)) for share in SHARES]
    return ours * len(every) / sum(every) if ours <= 1.3 * wrong(lambda problem, prior: problem.teacher) else inf


def recipe(problem: DigitsClassify, joint: int = 120, steps: int = 400) -> Recipe:
    together = InPlaceKD(widths=SHARES, drawn=0, temperature=4.0, teacher="teacher")
    return Recipe(
        stages=(
            learner("joint", together, steps=joint, student=pruned, batch=32, lr=1e-3),
            learner("amd", KD(), steps=steps, teacher=width(), batch=64),
        ),
        paper=Paper("2407.04208", "Han et al. 2024"),
        claim=Claim(
            text="mean held-out error by the chosen assistant ≤ 0.95 × the mean by each of four assistants, and "
            "never more than 1.3 × that straight from the teacher",
            check=well_chosen,
            bound=0.95,
            on="digits-classify",
            seeds=5,
            mean=True,
        ),
    )
