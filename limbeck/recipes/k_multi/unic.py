"""UNIC: one encoder for what several teachers know, through projectors that are dropped afterwards. arXiv 2408.05088.

One teacher has learned whether a digit is odd, the other how many loops it has, and the features of the second are ten
times as large. The student follows the features of both on images without labels. Projectors are linear here: with
perceptrons, as in the paper, what they know a linear probe of the student finds less of. Dropping teachers and the
ladder change little at this size; that features are standardised is what helps.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.engine import Batch, Claim, Drawn, Paper, Prior, Recipe, Source, Stage
from limbeck.objectives import UNIC, CrossEntropy, FitNets, Projection
from limbeck.problems.digits import jittered, split
from limbeck.problems.digits_classify import DigitsClassify
from limbeck.problems.networks import MLP
from limbeck.problems.problem import evaluating
from limbeck.recipes.claims import by, last_beats
from limbeck.recipes.parts import learner
from limbeck.rng import Rng

SKILLS = {"parity": torch.arange(10) % 2, "loops": torch.tensor([1, 0, 0, 0, 0, 0, 1, 0, 2, 1])}
"""What each teacher knows of a digit."""


def skilled(name: str) -> Source:
    """All images, with what one skill says of them as labels."""
    views = jittered(*split()[:2])

    def make(n: int, rng: Rng) -> Batch:
        batch = views.take(n, rng)
        return {"x": batch["x"], "y": SKILLS[name][batch["y"]]}

    return Drawn(make, fields=("x", "y"))


def taught(name: str, steps: int) -> Stage:
    """A teacher of one skill."""
    classes = int(SKILLS[name].max()) + 1
    return learner(
        name,
        CrossEntropy(),
        steps=steps,
        student=lambda problem, prior: MLP(size=64, classes=classes, widths=(64,)),
        data=lambda problem, prior: skilled(name),
    )


def teachers(problem: DigitsClassify, prior: Prior) -> dict[str, nn.Module]:
    """Both, the second with features ten times as large."""
    loud = copy.deepcopy(prior.student("loops"))
    assert isinstance(loud, MLP)
    with torch.no_grad():
        for p in loud.blocks.parameters():
            p.mul_(10)
    return {"teacher": prior.student("parity"), "second": loud}


def encoder(problem: DigitsClassify, prior: Prior) -> nn.Module:
    """The student, whose last hidden layer is what counts; only labels would train its head."""
    return MLP(size=64, classes=10, widths=(32, 32))


def images(problem: DigitsClassify, prior: Prior) -> Source:
    """All images; their labels are not looked at."""
    return jittered(*split()[:2])


def labelled(problem: DigitsClassify, prior: Prior) -> Source:
    """The few images with labels."""
    return problem.source


@torch.no_grad()
def worse_skill(student: nn.Module, problem: DigitsClassify, seed: int) -> float:
    """The held-out error of linear probes, by ridge regression on all images, at the skill they do worse."""
    x, y, heldout_x, heldout_y = split()
    assert isinstance(student, MLP)
    with evaluating(student):
        known, seen = (F.pad(student.blocks(x.flatten(1)).double(), (0, 1), value=1.0) for x in (x, heldout_x))
    return max(_probed(known, seen, skill[y], skill[heldout_y]) for skill in SKILLS.values())


def _probed(known: Tensor, seen: Tensor, y: Tensor, heldout: Tensor) -> float:
    gram = known.mT @ known + 1e-3 * len(known) * torch.eye(known.shape[1])
    probe = torch.linalg.solve(gram, known.mT @ F.one_hot(y).double())
    return ((seen @ probe).argmax(1) != heldout).double().mean().item()


def recipe(problem: DigitsClassify, steps: int = 600, before: int = 500) -> Recipe:
    objective = UNIC(
        teachers={"teacher": "blocks", "second": "blocks"},
        last="blocks.1",
        ladder=("blocks.0",),
        projector=Projection(),
    )
    one = FitNets(pairs={"blocks.1": "blocks"})
    other = FitNets(teacher="second", pairs={"blocks.1": "blocks"})
    return Recipe(
        stages=(
            *(taught(name, before) for name in SKILLS),
            learner("unic", objective, steps=steps, student=encoder, teacher=teachers, data=images),
        ),
        paper=Paper("2408.05088", "Sariyildiz et al. 2024"),
        claim=Claim(
            text="mean held-out error of a linear probe at the skill it does worse ≤ 0.95 × the least of those by "
            "hints from both teachers as they are, from either alone, and by the 50 labels there are",
            check=last_beats(
                by(one + other), by(one), by(other), by(CrossEntropy(), data=labelled), figure=worse_skill
            ),
            bound=0.95,
            on="digits-classify",
            seeds=5,
            mean=True,
        ),
    )
