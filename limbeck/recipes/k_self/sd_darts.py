"""SD-DARTS: an architecture is searched for while past selves of the supernet vote on what it says. arXiv 2302.05629.

Each of three layers is a mixture of four operations. Weights learn from one half of the labelled images, the mixtures
from the other half; afterwards the likeliest operation of each layer is kept, with its weights, and not trained again.

Supernets err about as often with votes as without. What votes change is what is lost when only one operation of each
layer is kept: without them mixtures stay undecided, and the error may be several times as large afterwards. So it is at
one rate of α: where α learns four times as fast without votes, it decides by itself, and votes are no reliable gain
(0.95 ± 0.4 × the error). The paper trains what it keeps anew, and measures how flat the loss is.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.engine import (
    Adam,
    Batch,
    Cast,
    Claim,
    Cosine,
    Drawn,
    Loss,
    Objective,
    Paper,
    Prior,
    Recipe,
    Source,
    Term,
    Tick,
)
from limbeck.objectives import CrossEntropy
from limbeck.problems.digits import jittered
from limbeck.problems.digits_classify import DigitsClassify
from limbeck.problems.problem import Classification
from limbeck.recipes.claims import by, error, last_beats
from limbeck.recipes.k_self._past import PastVotes
from limbeck.recipes.parts import learner
from limbeck.rng import Rng


class Mixture(nn.Module):
    """Σ_k softmax(α)_k·op_k(x) over operations on maps of one size: nothing, a pool, small and large convolutions.

    Its α is no parameter of the student's: `Architecture` trains it.
    """

    def __init__(self, width: int):
        super().__init__()
        convs = (nn.Conv2d(width, width, size, padding=size // 2) for size in (1, 3))
        self.ops = nn.ModuleList([nn.Identity(), nn.AvgPool2d(3, 1, 1), *(nn.Sequential(c, nn.ReLU()) for c in convs)])
        self.alpha = nn.Parameter(torch.zeros(len(self.ops)), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return sum((w * op(x) for w, op in zip(self.alpha.softmax(0), self.ops, strict=True)), torch.zeros_like(x))

    @torch.no_grad()
    def harden(self) -> None:
        """The likeliest operation alone."""
        self.alpha.copy_(1e4 * F.one_hot(self.alpha.argmax(), len(self.alpha)))


def supernet(problem: Classification, prior: Prior) -> nn.Module:
    """Three mixtures of 8 channels between a convolution and a linear head."""
    stem, head = nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.Linear(8 * 16, problem.classes)
    return nn.Sequential(stem, nn.ReLU(), *(Mixture(8) for _ in range(3)), nn.Flatten(), head)


class Alphas(nn.Module):
    """The architecture as a role: every α of a network, which keeps its other parameters."""

    def __init__(self, network: nn.Module):
        super().__init__()
        found = [module.alpha for module in network.modules() if isinstance(module, Mixture)]
        self.alphas = nn.ParameterList(alpha.requires_grad_(True) for alpha in found)


@dataclass(frozen=True, kw_only=True)
class Architecture(Objective):
    """Cross-entropy of images that no weight learns from, by α alone: the outer level of DARTS, arXiv 1806.09055, at
    first order, in the same tick as the inner one."""

    def check(self, cast: Cast) -> None:
        cast.need_fields("other_x", "other_y", by=self)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        cast.role("architecture", lambda: Alphas(cast.student), spec=self)

        def loss(tick: Tick) -> Loss:
            z = cast.student(tick.batch["other_x"])
            return Loss(F.cross_entropy(z, tick.batch["other_y"], reduction="none"))

        return (Term("architecture", "architecture", loss, of=self),)


def halves(problem: Classification, prior: Prior) -> Source:
    """Views of the labelled images: of every other one for weights, of the rest for the architecture."""
    x, y = problem.train
    one, two = jittered(x[::2], y[::2]), jittered(x[1::2], y[1::2])

    def make(n: int, rng: Rng) -> Batch:
        batch, other = one.take(n, rng), two.take(n, rng)
        return {**batch, "other_x": other["x"], "other_y": other["y"]}

    return Drawn(make, fields=("x", "y", "other_x", "other_y"))


@torch.no_grad()
def hardened(student: nn.Module, problem: Classification, seed: int) -> float:
    """The held-out error once each mixture is its likeliest operation."""
    kept = copy.deepcopy(student)
    for module in kept.modules():
        if isinstance(module, Mixture):
            module.harden()
    return error(kept, problem, seed)


def recipe(problem: DigitsClassify, steps: int = 300, rate: float = 5e-3) -> Recipe:
    search = CrossEntropy() + Architecture()
    optim = {"default": Adam(lr=5e-3, schedule=Cosine()), "architecture": Adam(lr=rate)}
    settings = {"student": supernet, "data": halves, "batch": 64, "optim": optim}
    return Recipe(
        stages=(learner("sd-darts", search + 3 * PastVotes(every=30), steps=steps, **settings),),
        paper=Paper("2302.05629", "Zhu et al. 2023"),
        claim=Claim(
            text="mean held-out error of the architecture that is kept, with the supernet's weights, ≤ 0.8 × that of "
            "as many ticks without votes, all rates alike",
            check=last_beats(by(search), figure=hardened),
            bound=0.8,
            on="digits-noisy",
            seeds=5,
            mean=True,
        ),
    )
