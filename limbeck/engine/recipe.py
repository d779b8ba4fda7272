"""Recipes: a published system as stages of parts, its paper, and a claim that is measured."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.engine.data import Source
from limbeck.engine.loop import Run, distill
from limbeck.engine.memory import HALF, Half, Memory
from limbeck.engine.objective import Objective
from limbeck.engine.optim import EMA, Adam, Optim
from limbeck.engine.ranks import several
from limbeck.engine.shards import twins
from limbeck.errors import BadSetting, in_range
from limbeck.rng import seeded

Problem = Any
"""What to distil on; recipes say in their signature which kind they need."""

Modules = nn.Module | Mapping[str, nn.Module]


class Prior:
    """What the earlier stages of a recipe left: students by stage, and folders of what was made.

    Args:
        root: the folder that holds one folder for each stage.
    """

    def __init__(self, root: Path):
        self.root = root
        self.students: dict[str, nn.Module] = {}

    def student(self, stage: str) -> nn.Module:
        """The result of an earlier stage."""
        return self.students[stage]

    def folder(self, stage: str) -> Path:
        """Where an earlier `Make` put its files."""
        return self.root / stage


def _teacher(problem: Problem, prior: Prior) -> Modules | None:
    return problem.teacher


def _named(parts: Modules | None, name: str) -> Mapping[str, nn.Module]:
    return parts if isinstance(parts, Mapping) else {} if parts is None else {name: parts}


def _data(problem: Problem, prior: Prior) -> Source | None:
    return problem.source


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One distillation of a recipe.

    Args:
        name: of the stage.
        steps: ticks.
        objective: which losses train whom.
        student: (problem, prior) → what learns.
        teacher: (problem, prior) → what knows; the problem's teacher by default.
        data: (problem, prior) → where batches come from; the problem's source by default.
        batch: rows of a tick.
        optim: how each role learns; ``default`` is for those not named.
        ema: moving average of the student.
        accumulate: micro-batches of a tick.
        autocast: of forward passes; parameters, gradients and losses stay as they are. In ``fp16`` losses are scaled,
            so that gradients do not underflow.
        memory: how each network lies in memory; ``default`` is for those not named.
        shard: of several processes each holds a part of every network, instead of all of it; see `distill`.
    """

    name: str
    steps: int
    objective: Objective
    student: Callable[[Problem, Prior], Modules]
    teacher: Callable[[Problem, Prior], Modules | None] = _teacher
    data: Callable[[Problem, Prior], Source | None] = _data
    batch: int = 256
    optim: Mapping[str, Optim] = field(default_factory=lambda: {"default": Adam()})
    ema: EMA | None = None
    accumulate: int = 1
    autocast: Half | None = None
    memory: Mapping[str, Memory] = field(default_factory=lambda: {"default": Memory()})
    shard: bool = False

    def __post_init__(self) -> None:
        in_range("steps", self.steps, 1)
        in_range("batch", self.batch, 1)

    def start(self, problem: Problem, prior: Prior, seed: int, device: torch.device | None = None) -> Run:
        """The run of this stage, checked and ready; on a device, or where its modules are."""
        with seeded(seed, self.name, "student"):
            student = self.student(problem, prior)
        teacher = self.teacher(problem, prior)
        knowing, learning = _named(teacher, "teacher"), _named(student, "student")
        for name, module in {**knowing, **learning}.items():
            memory = self.memory.get(name, self.memory.get("default", Memory()))
            if memory.offload:  # before it moves, so that all of it need not fit there
                memory.lay(module.requires_grad_(False) if name in knowing else module, device)
            module.to(device)
        if self.shard and several():  # the problem's own networks, and those of other stages, stay whole
            teacher, student = twins((teacher, student), (*knowing.values(), *learning.values()))
        return distill(
            teacher,
            student,
            self.objective,
            self.data(problem, prior),
            steps=self.steps,
            batch=self.batch,
            optim=self.optim,
            ema=self.ema,
            accumulate=self.accumulate,
            autocast=HALF.get(self.autocast),
            memory=self.memory,
            shard=self.shard,
            seed=(seed, self.name),
        )


@dataclass(frozen=True, kw_only=True)
class Make:
    """A stage without training: ODE pairs, a search, a cache of labels.

    Args:
        name: of the stage.
        make: (problem, prior, folder, seed) → None; writes files into the folder.
    """

    name: str
    make: Callable[[Problem, Prior, Path, int], None]


@dataclass(frozen=True)
class Paper:
    """Where a system was published: arXiv identifier, and authors with year."""

    arxiv: str
    authors: str


@dataclass(frozen=True)
class Trial:
    """What a claim is judged on: the recipe's result on a problem under one seed."""

    recipe: "Recipe"
    problem: Problem
    student: nn.Module
    prior: Prior
    seed: int


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a recipe promises: a figure, measured on fresh seeds, that is at most the bound.

    Args:
        text: the promise, in words.
        check: Trial → figure; a ratio to an honest baseline.
        bound: the largest figure that passes.
        on: the built-in problem that it is measured on.
        seeds: on how many fresh seeds it is measured.
        mean: whether the mean over seeds is at most the bound; otherwise each of them is.
    """

    text: str
    check: Callable[[Trial], float]
    bound: float
    on: str
    seeds: int = 3
    mean: bool = False

    def holds(self, figures: Collection[float]) -> bool:
        """Whether what was measured, one figure for each seed, is what was promised."""
        if self.mean:
            return sum(figures) / len(figures) <= self.bound
        return all(figure <= self.bound for figure in figures)  # NaN is not


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A system: stages of parts, its paper and its claim.

    Args:
        stages: run in order; the student of the last is the result.
        paper: where it was published.
        claim: what is measured.
    """

    stages: tuple[Stage | Make, ...]
    paper: Paper
    claim: Claim

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names) or not isinstance(self.stages[-1], Stage):
            raise BadSetting(f"a recipe needs stages of different names, the last one trained, got {names}.")
