"""Diffusion2GAN: regression onto pairs of the teacher's ODE, and a GAN that sees their noise. arXiv 2405.05967.

On points in the plane: the distance is the squared one, for points have no perceptual distance to learn (E-LatentLPIPS
in the paper), and noise levels of the discriminator take the place of its scales. Mismatched pairs and R1 are left out:
they made the discriminator so strong here that pairs came apart.
"""

from dataclasses import replace
from math import inf

import torch
from torch import Tensor

from limbeck.engine import Adam, Claim, Linear, Make, Paper, Recipe, Stage, Trial
from limbeck.evaluate.comparison import fresh, student_of
from limbeck.objectives import PairGAN, Regression
from limbeck.problems.mixture2d_network import Mixture2DNetwork
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import rerun
from limbeck.recipes.g_traj.pairs_regression import make_pairs, read_pairs
from limbeck.recipes.parts import generator, need_network
from limbeck.students import FromTeacher

SQUARED = Regression(c=3.0)
"""Pseudo-Huber with c far above all distances: ‖a − b‖²/2c√D."""


def recipe(problem: Generative, steps: int = 300) -> Recipe:
    need_network(problem, "diffusion2gan")
    objective = SQUARED + 0.03 * PairGAN()
    adam = Adam(lr=5e-4, betas=(0.0, 0.99), schedule=Linear())
    optim = {"default": adam, "discriminator": replace(adam, lr=2e-3)}
    stage = generator("gan", objective, steps=steps, data=read_pairs, student=FromTeacher(ratios=(80.0,)), optim=optim)
    return Recipe(
        stages=(Make(name="pairs", make=make_pairs), stage),
        paper=Paper("2405.05967", "Kang et al. 2024"),
        claim=Claim(
            text="one step: error of the variance within modes ≤ 0.85 × that of regression alone, with "
            "≤ 1.1 × its squared error on fresh noise",
            check=less_blurred,
            bound=0.85,
            on="mixture2d-network",
        ),
    )


def alone(stage: Stage) -> Stage:
    """The same by regression alone."""
    adam = stage.optim["default"]
    return replace(stage, objective=SQUARED, optim={"default": adam})


def less_blurred(trial: Trial) -> float:
    """|v − 1| over that of regression alone; infinite where pairs are further off than 1.1 times."""
    problem = trial.problem
    assert isinstance(problem, Mixture2DNetwork)
    noise, cond, rng = fresh(problem, 5000, trial.seed)
    goal = problem.teacher_sample(noise, cond)
    samples = [student_of(student)(noise, cond, rng).x for student in (trial.student, rerun(trial, alone))]
    ours, theirs = (((x - goal) ** 2).sum(1).mean().item() for x in samples)
    blur = [abs(variance(x, problem.exact.means) - 1) for x in samples]
    return blur[0] / blur[1] if ours <= 1.1 * theirs else inf


def variance(x: Tensor, means: Tensor) -> float:
    """Of points within 3.5 standard deviations of a mode, about their own mean there, over that of the modes."""
    distance, near = torch.cdist(x, means).min(1)
    parts = [x[(near == k) & (distance < 3.5 * 0.08)] for k in range(len(means))]
    return torch.stack([part.var(0).mean() / 0.08**2 for part in parts]).mean().item()
