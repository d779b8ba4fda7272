"""CausVid: a causal student on ODE pairs, then matched by teacher and critic that see all frames. arXiv 2412.07772.

No videos: a frame is one number, and the data of the second stage are conditions alone. The student takes one step (4),
so all frames have the same noise level, not levels of their own, and earlier frames reach later ones as their noise.
"""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from limbeck.engine import Claim, Dataset, Make, Paper, Prior, Recipe, Source, Stage
from limbeck.evaluate.comparison import fresh, student_of
from limbeck.objectives import DMD, Critic, Fake, Regression
from limbeck.problems.sequences import Sequences
from limbeck.recipes.claims import against
from limbeck.recipes.parts import TIMES, conditions, generator
from limbeck.rng import Rng
from limbeck.students import OneStep
from limbeck.teachers import read_tensors

PAIRS = 4096


def make_pairs(problem: Sequences, prior: Prior, folder: Path, seed: int) -> None:
    """Noise and what the teacher's ODE makes of it."""
    noise = Rng((seed, "pairs")).normal(PAIRS, *problem.shape)
    save_file({"noise": noise, "x": problem.teacher_sample(noise, None)}, folder / "pairs.safetensors")


def read_pairs(problem: Sequences, prior: Prior) -> Source:
    return Dataset(**read_tensors(prior.folder("pairs") / "pairs.safetensors"))


def causal(problem: Sequences, prior: Prior) -> OneStep:
    return OneStep(problem.causal(), shape=problem.shape, ratio=problem.ratio)


def initialised(problem: Sequences, prior: Prior) -> OneStep:
    student = prior.student("ode")
    assert isinstance(student, OneStep)
    return student.clone(trainable=True)


def pairs_alone(stage: Stage) -> Stage:
    return replace(stage, objective=Regression(), data=read_pairs)


@torch.no_grad()
def covariance_error(student: nn.Module, problem: Sequences, seed: int) -> float:
    """‖Ĉ − C‖/‖C‖ of 20 000 samples."""
    x = student_of(student)(*fresh(problem, 20_000, seed)).x
    return ((x.T.cov() - problem.covariance).norm() / problem.covariance.norm()).item()


def recipe(problem: Sequences, steps: int = 300) -> Recipe:
    dmd = DMD(fake=Fake(critic=Critic(times=TIMES)), times=TIMES, critic_steps=2)
    return Recipe(
        stages=(
            Make(name="pairs", make=make_pairs),
            generator("ode", Regression(), steps=steps // 2, lr=2e-3, data=read_pairs, student=causal),
            generator("dmd", dmd, steps=steps, lr=2e-3, data=conditions, student=initialised),
        ),
        paper=Paper("2412.07772", "Yin et al. 2024"),
        claim=Claim(
            text="covariance of the frames ≤ 0.25 × as far from the teacher's as by as many ticks on ODE pairs alone",
            check=against(pairs_alone, covariance_error),
            bound=0.25,
            on="sequences",
        ),
    )
