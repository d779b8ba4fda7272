"""SDXL-Lightning: steps are halved by a GAN that sees where each step began, at last its end alone. arXiv 2402.13929.

From eight steps to one on points in the plane, by all weights (adapters first in the paper). The first stage is a
regression onto four steps of the teacher to one; the discriminator is a copy of the teacher throughout. In the plane
regression alone is nearly exact and there is nothing to sharpen: the claim is that to see the start helps the GAN.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace

import torch
from torch import nn

from limbeck.engine import EMA, Adam, Claim, Linear, Objective, Paper, Prior, Recipe, Stage
from limbeck.evaluate.comparison import fresh, student_of
from limbeck.objectives import StepGAN, StepRegression
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import against
from limbeck.recipes.parts import need_network
from limbeck.students import Trajectory

ADAM = Adam(lr=2e-4, betas=(0.0, 0.99), schedule=Linear())


def recipe(problem: Generative, steps: int = 100) -> Recipe:
    need_network(problem, "sdxl-lightning")
    gan, relaxed = StepGAN(eyes="base"), StepGAN(eyes="base", relaxed=True)
    return Recipe(
        stages=(
            stage("eight", 8, StepRegression(between=4), steps=steps),
            stage("four", 4, gan, "eight", "eight", steps=steps),
            stage("two", 2, gan, "four", "four", steps=steps),
            stage("one", 1, gan, "two", "two", steps=2 * steps),
            stage("relaxed", 1, relaxed, "two", "one", steps=steps),
        ),
        paper=Paper("2402.13929", "Lin et al. 2024"),
        claim=Claim(
            text="one step ends ≤ 0.97 × as far from where the teacher's own steps lead as by the same stages whose "
            "discriminator sees ends alone",
            check=against(ends_alone, off_the_path),
            bound=0.97,
            on="mixture2d-network",
            seeds=5,
            mean=True,
        ),
    )


def stage(name: str, k: int, objective: Objective, teacher: str = "", start: str = "", *, steps: int) -> Stage:
    """k steps, taught by the result of one earlier stage, from that of another; by the problem's teacher without."""

    def knows(problem: Generative, prior: Prior) -> Mapping[str, nn.Module]:
        before = prior.student(teacher).denoiser if teacher else problem.teacher  # type: ignore[union-attr]
        return {"teacher": before, "base": problem.teacher}  # type: ignore[dict-item]

    def learns(problem: Generative, prior: Prior) -> nn.Module:
        before = deepcopy(prior.student(start).denoiser) if start else problem.network()  # type: ignore[union-attr]
        return Trajectory(before.requires_grad_(True), ratios=grid(problem, k), shape=problem.shape)  # type: ignore[operator]

    optim = {"default": ADAM, **({"discriminator": replace(ADAM, lr=1e-3)} if isinstance(objective, StepGAN) else {})}
    ema = EMA(decay=0.98)
    return Stage(name=name, steps=steps, objective=objective, student=learns, teacher=knows, optim=optim, ema=ema)


def grid(problem: Generative, k: int) -> tuple[float, ...]:
    """k noise levels σ/α, even on the process's clock, so that every second one is a level of half as many."""
    process = problem.teacher.process
    first = process.fraction(process.at_ratio(torch.tensor([problem.ratio], dtype=torch.float64)))
    t = process.at_fraction(first * torch.tensor([1 - i / k for i in range(k)], dtype=torch.float64))
    return tuple(process.ratio(t).tolist())


def ends_alone(stage: Stage) -> Stage:
    """The same with a discriminator that never sees where a step began."""
    gan = stage.objective
    return replace(stage, objective=replace(gan, relaxed=True)) if isinstance(gan, StepGAN) else stage


def off_the_path(student: nn.Module, problem: Generative, seed: int) -> float:
    """Mean distance to where the teacher's own steps lead from the same noise."""
    noise, cond, rng = fresh(problem, 5000, seed)
    goal = problem.teacher_sample(noise, cond)
    return (student_of(student)(noise, cond, rng).x - goal).norm(dim=1).mean().item()
