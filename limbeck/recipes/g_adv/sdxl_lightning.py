"""SDXL-Lightning: steps are halved by a GAN that sees where each step began, at last its end alone. arXiv 2402.13929.

From eight steps to one on points in the plane, by all weights (adapters first in the paper). The first stage is a
regression onto four steps of the teacher to one; the discriminator is a copy of the teacher throughout. In the plane
regression alone is nearly exact, there is nothing to sharpen, and modes contract under the GAN; whether it sees where a
step began makes no difference that seeds do not (0.7 to 1.6). Claimed is that samples stay where the teacher leads.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace

import torch
from torch import nn

from limbeck.diffusion import Denoiser
from limbeck.engine import EMA, Adam, Claim, Linear, Objective, Paper, Prior, Recipe, Stage, Trial
from limbeck.evaluate.comparison import fresh, student_of
from limbeck.objectives import StepGAN, StepRegression
from limbeck.problems.mixture2d_network import Mixture2DNetwork
from limbeck.problems.problem import Generative
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
            text="one step: ≤ 0.2 × as many samples as by chance end in another mode of their class than where the "
            "teacher's own steps lead",
            check=astray,
            bound=0.2,
            on="mixture2d-network",
        ),
    )


def stage(name: str, k: int, objective: Objective, teacher: str = "", start: str = "", *, steps: int) -> Stage:
    """k steps, taught by the result of one earlier stage, from that of another; by the problem's teacher without."""

    def knows(problem: Generative, prior: Prior) -> Mapping[str, nn.Module]:
        return {"teacher": network(prior, teacher) if teacher else problem.teacher, "base": problem.teacher}

    def learns(problem: Generative, prior: Prior) -> nn.Module:
        net = deepcopy(network(prior, start)).requires_grad_(True) if start else problem.network()
        return Trajectory(net, ratios=grid(problem, k), shape=problem.shape)

    optim = {"default": ADAM, **({"discriminator": replace(ADAM, lr=1e-3)} if isinstance(objective, StepGAN) else {})}
    ema = EMA(decay=0.98)
    return Stage(name=name, steps=steps, objective=objective, student=learns, teacher=knows, optim=optim, ema=ema)


def network(prior: Prior, name: str) -> Denoiser:
    """The network of the student that an earlier stage left."""
    student = prior.student(name)
    assert isinstance(student, Trajectory)
    return student.denoiser


def grid(problem: Generative, k: int) -> tuple[float, ...]:
    """k noise levels σ/α, even on the process's clock, so that every second one is a level of half as many."""
    process = problem.teacher.process
    first = process.fraction(process.at_ratio(torch.tensor([problem.ratio], dtype=torch.float64)))
    t = process.at_fraction(first * torch.tensor([1 - i / k for i in range(k)], dtype=torch.float64))
    return tuple(process.ratio(t).tolist())


def astray(trial: Trial) -> float:
    """The share of samples in another mode than the teacher's from the same noise, over that by chance, a half."""
    problem, (noise, cond, rng) = trial.problem, fresh(trial.problem, 5000, trial.seed)
    assert isinstance(problem, Mixture2DNetwork)
    ends = student_of(trial.student)(noise, cond, rng).x, problem.teacher_sample(noise, cond)
    ours, theirs = (torch.cdist(x, problem.exact.means).argmin(1) for x in ends)
    return 2 * (ours != theirs).double().mean().item()
