"""A user's own recipe in three stages: a cache that is made, a student of it, and a student of that student."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from limbeck import KD, Adam, Claim, CrossEntropy, Dataset, Make, Paper, Recipe, Stage
from limbeck.engine.recipe import Prior
from limbeck.problems.problem import Classification
from limbeck.rng import Rng
from limbeck.teachers import read_tensors


def views(problem: Classification, prior: Prior, folder: Path, seed: int) -> None:
    """Jittered inputs with the teacher's answers, kept as a file in a folder of their own."""
    x = problem.train[0] + 0.1 * Rng((seed, "views")).normal(len(problem.train[0]), 2)
    (folder / "cache").mkdir()
    with torch.no_grad():
        save_file({"x": x, "y": problem.teacher(x).argmax(1)}, folder / "cache" / "views.safetensors")


def cached(problem: Classification, prior: Prior) -> Dataset:
    """What the first stage made."""
    return Dataset(**read_tensors(prior.folder("views") / "cache" / "views.safetensors"))


def student(problem: Classification, prior: Prior) -> nn.Module:
    """An untrained network."""
    return problem.network()


def elder(problem: Classification, prior: Prior) -> nn.Module:
    """The student of the stage before."""
    return prior.student("labels")


def recipe(problem: Classification, steps: int = 30) -> Recipe:
    """Stages that depend on each other, by files and by modules."""
    optim = {"default": Adam(lr=1e-2)}
    labels = Stage(
        name="labels", steps=steps, student=student, objective=CrossEntropy(), data=cached, optim=optim, batch=16
    )
    again = Stage(name="again", steps=steps + 10, student=student, teacher=elder, objective=KD(), optim=optim, batch=16)
    claim = Claim(text="learns", check=lambda trial: 0.0, bound=1.0, on="quick")
    return Recipe(
        stages=(Make(name="views", make=views), labels, again), paper=Paper("0000.00000", "nobody"), claim=claim
    )
