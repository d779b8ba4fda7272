"""Stages that recipes share: a generator that starts as its teacher, and particles that start as noise."""

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from limbeck.diffusion import Featured, LogNormal
from limbeck.engine import EMA, Adam, Batch, Cosine, Drawn, Linear, Objective, Prior, Source, Stage
from limbeck.errors import Incompatible
from limbeck.problems.digits import jitter
from limbeck.problems.digits_classify import DigitsClassify
from limbeck.problems.masked import MaskedAutoencoder, MaskedPatches
from limbeck.problems.networks import ViT
from limbeck.problems.problem import Generative, Problem
from limbeck.rng import Rng
from limbeck.students import FromNoise, FromTeacher

TIMES = LogNormal(mean=-0.8, std=1.4)
"""Noise levels for small images, where few pixels hide little; where all look at the same ones, they share passes."""


def generator(name: str, objective: Objective, *, steps: int, lr: float = 5e-4, **settings: Any) -> Stage:
    """A stage that trains a one- or few-step generator: Adam without momentum, a line down to 0, and an average.

    Args:
        name: of the stage.
        objective: which losses train whom.
        steps: ticks.
        lr: of every role.
        settings: other arguments of `Stage`, such as ``student=FromTeacher(ratios=(1.0, 0.3))``.
    """
    adam = Adam(lr=lr, betas=(0.0, 0.99), schedule=Linear())
    defaults = {"student": FromTeacher(), "optim": {"default": adam}, "ema": EMA(decay=0.99)}
    return Stage(name=name, steps=steps, objective=objective, **{**defaults, **settings})


def particles(name: str, objective: Objective, *, steps: int, lr: float = 0.02, **settings: Any) -> Stage:
    """A stage that moves free samples from noise under an objective, by Adam and half a cosine.

    Args:
        name: of the stage.
        objective: which losses train whom.
        steps: ticks.
        lr: of every role.
        settings: other arguments of `Stage`, such as ``student=FromNoise(n=64)``.
    """
    optim = {"default": Adam(lr=lr, schedule=Cosine())}
    return Stage(name=name, steps=steps, objective=objective, **{"student": FromNoise(), "optim": optim, **settings})


def conditions(problem: Generative, prior: Prior) -> Source:
    """Conditions as they occur in the data, and nothing else: for runs that see no samples."""
    return Drawn(lambda n, rng: {"cond": problem.conditions(n, rng)}, fields=("cond",))


def need_network(problem: Generative, name: str) -> None:
    """Raises `Incompatible` unless the problem's teacher is a network that shows its features."""
    if not isinstance(problem.teacher, Featured):
        need, got = "a problem whose teacher is a network", f"{problem.name}, a {type(problem.teacher).__name__}"
        raise Incompatible(name, need=need, got=got, fit="mixture2d-network")


def own_network(problem: Problem, prior: Prior) -> nn.Module:
    """The problem's own network for students, untrained."""
    return problem.network()


def learner(name: str, objective: Objective, *, steps: int, lr: float = 5e-3, **settings: Any) -> Stage:
    """A stage that trains the problem's own network, untrained at first: Adam and half a cosine.

    Args:
        name: of the stage.
        objective: which losses train whom.
        steps: ticks.
        lr: of every role.
        settings: other arguments of `Stage`.
    """
    optim = {"default": Adam(lr=lr, schedule=Cosine())}
    defaults = {"student": own_network, "batch": 128, "optim": optim}
    return Stage(name=name, steps=steps, objective=objective, **{**defaults, **settings})


def copied(name: str) -> Callable[[Problem, Prior], nn.Module]:
    """A copy of an earlier stage's result, to be trained further."""
    return lambda problem, prior: copy.deepcopy(prior.student(name)).requires_grad_(True)


def staged(name: str) -> Callable[[Problem, Prior], nn.Module]:
    """The result of an earlier stage, as the teacher."""
    return lambda problem, prior: prior.student(name)


def transformer(width: int) -> Callable[[DigitsClassify, Prior], ViT]:
    """An untrained vision transformer of digits whose tokens have this width."""
    return lambda problem, prior: ViT(size=8, classes=problem.classes, width=width)


def autoencoder(width: int) -> Callable[[DigitsClassify, Prior], nn.Module]:
    """An untrained masked autoencoder of digits whose tokens have this width."""
    made = transformer(width)
    return lambda problem, prior: MaskedAutoencoder(made(problem, prior))


def encoder(name: str) -> Callable[[Problem, Prior], nn.Module]:
    """The transformer in the autoencoder of an earlier stage, to be trained on."""

    def student(problem: Problem, prior: Prior) -> nn.Module:
        trained = prior.student(name)
        assert isinstance(trained, MaskedAutoencoder)
        return copy.deepcopy(trained.encoder).requires_grad_(True)

    return student


def masked_images(problem: DigitsClassify, prior: Prior) -> Source:
    """All images, without labels, moved at random, of which three quarters of the patches are hidden."""
    x = problem.unlabelled

    def make(n: int, rng: Rng) -> Batch:
        return {"x": jitter(x[rng.integers(n, len(x))], rng)}

    return MaskedPatches(Drawn(make, fields=("x",)))


def need_labels(problem: Problem, name: str) -> None:
    """Raises `Incompatible` unless the problem's batches have labels y."""
    if problem.source is None or "y" not in problem.source.fields:
        raise Incompatible(name, need="a problem whose batches have labels y", got=problem.name, fit="digits-classify")
