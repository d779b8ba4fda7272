"""What recipes share: the student that a problem offers, and checks that measure a ratio to an honest baseline."""

from collections.abc import Callable
from dataclasses import replace
from math import inf

import torch
from torch import Tensor, nn

from limbeck.diffusion import Karras, euler, sample
from limbeck.engine.recipe import Prior, Stage, Trial
from limbeck.engine.run import run_recipe
from limbeck.engine.student import Draw
from limbeck.evaluate.comparison import evaluate, judge, student_of
from limbeck.objectives import CrossEntropy
from limbeck.problems.problem import Problem
from limbeck.rng import Rng
from limbeck.students import Particles
from limbeck.teachers import GaussianMixture
from limbeck.tree import Tree


def student_network(problem: Problem, prior: Prior) -> nn.Module:
    """The problem's own student network, untrained."""
    return problem.network()


def one_step_frechet(trial: Trial) -> float:
    """The student's Fréchet distance over that of its teacher's full sampler: same noise, mean of two draws of it."""
    pairs = [evaluate(trial.student, trial.problem, seed=2 * trial.seed + k) for k in (0, 1)]
    return sum(p["frechet"] for p in pairs) / sum(p["frechet_teacher"] for p in pairs)


def as_good_as_teacher(trial: Trial) -> float:
    """`one_step_frechet`; infinite where classes, recall or speed are not as they should be."""
    got = evaluate(trial.student, trial.problem, seed=trial.seed)
    fast = got["seconds_per_1000_teacher"] >= 20 * got["seconds_per_1000"]
    same = got["accuracy"] >= 0.99 and got["recall"] >= 0.9 * got["recall_teacher"]
    return one_step_frechet(trial) if fast and same else inf


def frechet_at_steps(steps: int) -> Callable[[Trial], float]:
    """The student's Fréchet distance over that of its teacher in so many DDIM steps, from σ/α = 10 down to 0.02."""

    def check(trial: Trial) -> float:
        teacher, times = (
            trial.problem.teacher,
            Karras(sigma_min=0.02, sigma_max=10.0).grid(steps, trial.problem.teacher.process),
        )
        ours = judge(student_of(trial.student), trial.problem, seed=trial.seed)
        theirs = judge(
            lambda z, cond, _: Draw(sample(euler(teacher, z, times, cond)), cond), trial.problem, seed=trial.seed
        )
        return ours["frechet"] / theirs["frechet"]

    return check


def error_ratio(trial: Trial) -> float:
    """The student's held-out error over that of the same stage trained on labels alone."""
    plain = [replace(stage, objective=CrossEntropy()) for stage in trial.recipe.stages if isinstance(stage, Stage)]
    baseline = run_recipe(replace(trial.recipe, stages=tuple(plain)), trial.problem, seed=trial.seed)
    errors = [1 - trial.problem.accuracy(student) for student in (trial.student, baseline.student)]
    return errors[0] / max(errors[1], 1 / len(trial.problem.heldout[1]))


def mode_distance(trial: Trial) -> float:
    """Mean distance of particles to the nearest mode of their class, over that of the teacher's own samples."""
    teacher, rng = trial.problem.teacher, Rng((trial.seed, "modes"))
    assert isinstance(teacher, GaussianMixture) and teacher.labels is not None
    assert isinstance(trial.student, Particles)
    draw = trial.student.draw(len(trial.student.x), None, rng)
    theirs = teacher.sample(4096, rng, cond := trial.problem.conditions(4096, rng))

    def distance(x: Tensor, cond: Tree) -> float:
        other = teacher.labels != cond[:, None]
        return torch.cdist(x.detach(), teacher.means).masked_fill(other, torch.inf).amin(1).mean().item()

    return distance(draw.x, draw.cond) / distance(theirs, cond)
