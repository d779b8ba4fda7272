"""A user's own recipe: score distillation of particles, on any problem with a teacher of noise."""

import torch

from limbeck import SDS, Adam, Claim, Paper, Particles, Recipe, Stage
from limbeck.engine.recipe import Prior
from limbeck.problems.problem import Generative
from limbeck.rng import Rng


def particles(problem: Generative, prior: Prior) -> Particles:
    """Particles that start at random places."""
    return Particles(Rng("score").normal(32, *problem.shape), torch.arange(32) % 2)


def recipe(problem: Generative, steps: int = 20) -> Recipe:
    """Particles go uphill."""
    stage = Stage(
        name="score",
        steps=steps,
        student=particles,
        objective=SDS(),
        batch=32,
        optim={"default": Adam(lr=0.1)},
    )
    claim = Claim(text="goes uphill", check=lambda trial: 0.0, bound=1.0, on="mixture2d")
    return Recipe(stages=(stage,), paper=Paper("2209.14988", "Poole et al. 2022"), claim=claim)
