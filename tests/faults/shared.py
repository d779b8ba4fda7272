"""A user's own recipe whose every bit and batch can be shared by one, two or three processes."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from limbeck import EMA, KD, Adam, Claim, Cosine, Dataset, Make, Paper, Recipe, Stage
from limbeck.engine.recipe import Prior
from limbeck.problems.problem import Classification
from limbeck.rng import Rng
from limbeck.teachers import read_tensors
from tests.faults.quick import Quick


class Shared(Quick):
    """The same points for a network without running statistics, in float64."""

    name = "shared"

    def __init__(self) -> None:
        super().__init__()
        self.teacher_network.double()
        self.train, self.heldout = ((x.double(), y) for x, y in (self.train, self.heldout))

    def network(self) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def problem() -> Shared:
    """The problem, as the command line makes it."""
    return Shared()


def views(problem: Classification, prior: Prior, folder: Path, seed: int) -> None:
    """Inputs, moved, with their labels."""
    x, y = problem.train
    save_file(
        {"x": x + 0.1 * Rng((seed, "views")).normal(*x.shape, dtype=x.dtype), "y": y}, f"{folder}/views.safetensors"
    )


def cached(problem: Classification, prior: Prior) -> Dataset:
    """What the first stage made."""
    return Dataset(**read_tensors(prior.folder("views") / "views.safetensors"))


def student(problem: Classification, prior: Prior) -> nn.Module:
    """An untrained network that differs from process to process, as a careless user's does."""
    network = problem.network()
    if torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
        nn.init.zeros_(network[0].weight)
    return network


def recipe(problem: Classification, steps: int = 30) -> Recipe:
    """A cache that is made, and one stage on it."""
    stage = Stage(
        name="learn",
        steps=steps,
        student=student,
        data=cached,
        objective=KD(alpha=0.5),
        optim={"default": Adam(lr=1e-2, schedule=Cosine(), clip=1.0)},
        batch=12,
        ema=EMA(decay=0.9),
    )
    claim = Claim(text="learns", check=lambda trial: 0.0, bound=1.0, on="quick")
    return Recipe(stages=(Make(name="views", make=views), stage), paper=Paper("0000.00000", "nobody"), claim=claim)
