"""m2mKD: modules learn from modules, each in its place in a tiny network that both can stand in. arXiv 2402.16918.

A transformer of three blocks is cut into three modules. A tiny network of three mixing blocks learns first. Then for
each place: the teacher's block is stitched into the tiny network by two linear maps, which learn; and the student's
block in the same place learns from that network, alone, whatever the others do. Last, all are put together and tuned.

What is claimed is that a block learns to do what the teacher's does in its place. What the paper is for does not show
here: put together, three blocks that learned next to a Mixer's guess at random before they are tuned (90 %). Tuned
they have 54 to 60 %, where the same from nothing has 66 to 68 by labels in as many ticks; but by KD from nothing it has
20 to 22 in 650 ticks, fewer than all stages take together.
"""

import copy
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

from torch import nn

from limbeck.engine import Claim, Paper, Prior, Recipe, Stage, Trial
from limbeck.objectives import KD
from limbeck.problems.digits_vit import DigitsViT
from limbeck.problems.networks import Mixer, ViT
from limbeck.problems.problem import Classification
from limbeck.recipes.claims import error
from limbeck.recipes.parts import learner

PLACES, WIDTH = range(3), 24
Build = Callable[[Classification, Prior], nn.Module]


def untrained(problem: Classification, prior: Prior) -> ViT:
    """The student as one whole."""
    return ViT(size=problem.train[0].shape[-1], classes=problem.classes, width=WIDTH, blocks=len(PLACES))


def tiny(problem: Classification, prior: Prior) -> ViT:
    """The network that modules are put into: a Mixer's blocks between a transformer's stem and head."""
    net = untrained(problem, prior)
    net.blocks = Mixer(size=problem.train[0].shape[-1], classes=problem.classes, width=WIDTH, blocks=len(PLACES)).blocks
    return net


def holding(prior: Prior, blocks: Mapping[int, nn.Module]) -> ViT:
    """The tiny network, frozen, with blocks of others in some places."""
    net = copy.deepcopy(prior.student("tiny")).requires_grad_(False)
    assert isinstance(net, ViT)
    for place, block in blocks.items():
        net.blocks[place] = block
    return net


def stitched(place: int) -> Build:
    """The tiny network with the teacher's block in a place, frozen but for the maps to it and from it."""

    def build(problem: Classification, prior: Prior) -> nn.Module:
        assert isinstance(problem.teacher, ViT)
        width = problem.teacher.head.in_features
        block = copy.deepcopy(problem.teacher.blocks[place]).requires_grad_(False)
        return holding(prior, {place: nn.Sequential(nn.Linear(WIDTH, width), block, nn.Linear(width, WIDTH))})

    return build


def alone(place: int) -> Build:
    """The tiny network with a block of the student in a place, which is all that learns."""
    return lambda problem, prior: holding(prior, {place: untrained(problem, prior).blocks[place]})


def of(name: str) -> Build:
    """The result of an earlier stage, as the teacher."""
    return lambda problem, prior: prior.student(name)


def together(problem: Classification, prior: Prior) -> nn.Module:
    """The student's blocks, each from where it learned, between the stem and the head of the tiny network."""
    blocks = {k: copy.deepcopy(prior.student(f"module{k}").get_submodule(f"blocks.{k}")) for k in PLACES}
    return holding(prior, blocks).requires_grad_()


def stands_in(trial: Trial) -> float:
    """Mean held-out error of the tiny network with a block of the student in a place, over that with the teacher's."""
    ours, theirs = (
        sum(error(trial.prior.student(f"{name}{k}"), trial.problem, trial.seed) for k in PLACES)
        for name in ("module", "stitched")
    )
    return ours / theirs


def recipe(problem: DigitsViT, steps: int = 200, module: int = 100, tuned: int = 120) -> Recipe:
    def stage(name: str, student: Build, steps: int, **settings: Any) -> Stage:
        return learner(name, KD(), steps=steps, lr=4e-3, batch=64, student=student, **settings)

    places = (
        (
            stage(f"stitched{k}", stitched(k), module),
            stage(f"module{k}", alone(k), module, teacher=of(f"stitched{k}")),
        )
        for k in PLACES
    )
    return Recipe(
        stages=(stage("tiny", tiny, steps), *chain(*places), stage("together", together, tuned)),
        paper=Paper("2402.16918", "Lo et al. 2024"),
        claim=Claim(
            text="each block of the student stands in for the teacher's: mean held-out error of the tiny network with "
            "it ≤ 1.15 × that with the teacher's block in the same place",
            check=stands_in,
            bound=1.15,
            on="digits-vit",
            seeds=5,
            mean=True,
        ),
    )
