"""Controllable multi-task networks: two tasks share an encoder, and each pass has widths by choice. arXiv 2308.11744.

Narrow passes learn from labels, and their encoder's features are held to those at full width. Afterwards `configured`
turns a budget and a preference between tasks into widths, without training: the preferred task gets more of its
decoder, and the encoder what is left.

Labels at all widths keep features near already. Held to the full width they are nearer, but no task gains by it here:
the narrow widths' error is 0.9 to 1.2 × that of labels alone, and ten times the weight makes it half as much again. At
0.4 of the cost, digits have about 0.6 × the error where they count four times as much as where they count a quarter.
"""

from itertools import product
from math import inf

import torch
from torch import Tensor, nn

from limbeck.engine import Batch, Claim, Drawn, Paper, Prior, Recipe, Source, Trial
from limbeck.errors import BadSetting
from limbeck.evaluate.classification import multiply_adds
from limbeck.objectives import WidthCrossEntropy, WidthInvariance, turned
from limbeck.problems.problem import Classification
from limbeck.recipes.claims import by, rerun
from limbeck.recipes.parts import learner
from limbeck.rng import Rng
from limbeck.students import Slimmable, SlimmableTasks

TASKS = (10, 2)
GRID = (0.25, 0.5, 0.75, 1.0)


def answers(y: Tensor) -> Tensor:
    """Labels of both tasks: which digit, and whether it is odd, [B, 2]."""
    return torch.stack([y, y % 2], 1)


def both(problem: Classification, prior: Prior) -> Source:
    """The problem's data with labels of both tasks."""

    def make(n: int, rng: Rng) -> Batch:
        batch = problem.source.take(n, rng)
        return {"x": batch["x"], "y": answers(batch["y"])}

    return Drawn(make, fields=("x", "y"))


def network(problem: Classification, prior: Prior, width: int = 64) -> SlimmableTasks:
    """An encoder of two layers, and a decoder of two for each task."""
    size = problem.heldout[0][0].numel()
    encoder = nn.Flatten(), nn.Linear(size, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
    decoders = [Slimmable(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, classes)) for classes in TASKS]
    return SlimmableTasks(Slimmable(*encoder, ends=True), decoders)


@torch.no_grad()
def task_errors(net: SlimmableTasks, problem: Classification, shares: Tensor) -> Tensor:
    """Held-out error of each task at these widths, [2]."""
    x, y = problem.heldout
    chosen = torch.stack([part.argmax(1) for part in net(x, shares).split(TASKS, 1)], 1)
    return (chosen != answers(y)).double().mean(0)


def configured(net: SlimmableTasks, x: Tensor, budget: float, preference: tuple[float, float]) -> Tensor:
    """Widths for a share of the full cost, and weights of the tasks.

    Of all widths on a grid within the budget, those whose decoders are nearest to the preference, then those with the
    widest encoder.

    Raises:
        BadSetting: a budget below the cost of the narrowest widths.
    """
    most = budget * multiply_adds(net, x[:1])
    found = list[tuple[float, float, Tensor]]()
    for encoder, *decoders in product(GRID, repeat=3):
        shares = torch.tensor([encoder, encoder, *decoders])
        off = sum(abs(d - p / max(preference)) for d, p in zip(decoders, preference, strict=True))
        if multiply_adds(net.at(shares), x[:1]) <= most:
            found.append((off, -encoder, shares))
    if not found:
        raise BadSetting(f"a budget must be the share of the narrowest widths at least, got {budget:g}.")
    return min(found, key=lambda row: row[:2])[2]


def narrow_error(net: nn.Module, problem: Classification, seed: int) -> float:
    """Mean held-out error of both tasks at a quarter and a half of every width."""
    assert isinstance(net, SlimmableTasks)
    return torch.stack([task_errors(net, problem, net.widths(share)) for share in GRID[:2]]).mean().item()


@torch.no_grad()
def variation(net: nn.Module, problem: Classification, seed: int) -> float:
    """How far the encoder's features on held-out data turn at a quarter and a half of its width, mean 1 − cos."""
    assert isinstance(net, SlimmableTasks)
    encoder, x = net.encoder, problem.heldout[0]
    narrow = [encoder(x, encoder.widths(share)) for share in GRID[:2]]
    return sum(turned(part, encoder(x)[:, : part.shape[1]]).mean().item() for part in narrow) / len(narrow)


def recipe(problem: Classification, steps: int = 400) -> Recipe:
    labels = WidthCrossEntropy(widths=(0.25, 1.0), drawn=2, tasks=TASKS)
    invariant = WidthInvariance(widths=(0.25,), drawn=2, taps=("encoder.layers.4",))

    def check(trial: Trial) -> float:
        plain = rerun(trial, by(labels))
        ours, theirs = (variation(net, problem, trial.seed) for net in (trial.student, plain))
        wrong = [narrow_error(net, problem, trial.seed) for net in (trial.student, plain)]
        return ours / theirs if wrong[0] <= 1.5 * wrong[1] else inf

    stage = learner("cikd", labels + 0.1 * invariant, steps=steps, student=network, data=both, batch=64, lr=3e-3)
    return Recipe(
        stages=(stage,),
        paper=Paper("2308.11744", "Aich et al. 2023"),
        claim=Claim(
            text="mean over seeds of how far the encoder's features turn at a quarter and a half of its width ≤ 0.95 × "
            "that by labels alone, in as many ticks, at no more than 1.5 × its error, which is not made less",
            check=check,
            bound=0.95,
            on="digits-noisy",
            seeds=5,
            mean=True,
        ),
    )
