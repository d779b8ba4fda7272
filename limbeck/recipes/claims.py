"""What recipes share: checks that measure a ratio to an honest baseline."""

import copy
from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.diffusion import Karras, euler, like, sample
from limbeck.engine.loop import distill
from limbeck.engine.objective import Loss, Objective
from limbeck.engine.optim import SGD, Adam
from limbeck.engine.recipe import Claim, Prior, Stage, Trial
from limbeck.engine.run import run_recipe
from limbeck.engine.schedule import Cosine
from limbeck.engine.student import Draw
from limbeck.engine.tick import Place, Tick
from limbeck.evaluate.comparison import evaluate, fresh, judge, student_of
from limbeck.evaluate.metrics import sliced_wasserstein
from limbeck.problems.problem import Classification, Generative, evaluating
from limbeck.rng import Rng, seeded
from limbeck.students import FromNoise, Particles, Trajectory
from limbeck.teachers import GaussianMixture
from limbeck.tree import Tree


def one_step_frechet(trial: Trial) -> float:
    """The student's Fréchet distance over that of its teacher's full sampler: same noise, mean of two draws of it."""
    return _ratio(_judged(trial))


def as_good_as_teacher(trial: Trial) -> float:
    """`one_step_frechet`; infinite where classes, recall or speed are not as they should be."""
    judged = _judged(trial)
    fast = all(got["seconds_per_1000_teacher"] >= 20 * got["seconds_per_1000"] for got in judged)
    same = all(got["accuracy"] >= 0.99 and got["recall"] >= 0.9 * got["recall_teacher"] for got in judged)
    return _ratio(judged) if fast and same else inf


AS_GOOD_AS_TEACHER = Claim(
    text="one step: Fréchet ≤ 1.1 × the teacher's at 35 NFE, recall ≥ 0.9 ×, accuracy ≥ 99 %, ≥ 20 × faster",
    check=as_good_as_teacher,
    bound=1.1,
    on="digits",
)


def _judged(trial: Trial) -> list[dict[str, float]]:
    return [evaluate(trial.student, trial.problem, seed=2 * trial.seed + k) for k in (0, 1)]


def _ratio(judged: list[dict[str, float]]) -> float:
    return sum(got["frechet"] for got in judged) / sum(got["frechet_teacher"] for got in judged)


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


def error(student: nn.Module, problem: Classification, seed: int) -> float:
    """The held-out error, counting at least one example as wrong."""
    return max(1 - problem.accuracy(student), 1 / len(problem.heldout[1]))


def by(objective: Objective, **settings: Any) -> Callable[[Stage], Stage]:
    """A change of stages to another objective, and perhaps other settings of `Stage`."""
    return lambda stage: replace(stage, objective=objective, **settings)


def beats(
    *changes: Callable[[Stage], Stage], figure: Callable[[nn.Module, Any, int], float] = error
) -> Callable[[Trial], float]:
    """A figure of the result over the least of those of the same recipe with each of these changes to its stages.

    Args:
        changes: a stage → that of a baseline; also asked for stages that stay as they are.
        figure: (student, problem, seed) → a number that is better if lower; the held-out error by default.
    """

    def check(trial: Trial) -> float:
        others = [rerun(trial, change) for change in changes]
        ours, *theirs = (figure(student, trial.problem, trial.seed) for student in (trial.student, *others))
        return ours / min(theirs)

    return check


def mode_distance(trial: Trial) -> float:
    """Mean distance of particles to the nearest mode of their class, over that of the teacher's own samples."""
    rng, problem = Rng((trial.seed, "modes")), trial.problem
    theirs = problem.teacher.sample(4096, rng, cond := problem.conditions(4096, rng))
    return to_mode(trial.student, problem, trial.seed) / _to_mode(theirs, cond, problem.teacher)


def to_mode(student: nn.Module, problem: Generative, seed: int) -> float:
    """Mean distance of particles to the nearest mode of their class."""
    assert isinstance(student, Particles)
    draw = student.draw(len(student.x), None, Rng(0))
    return _to_mode(draw.x.detach(), draw.cond, problem.teacher)


def _to_mode(x: Tensor, cond: Tree, teacher: nn.Module) -> float:
    assert isinstance(teacher, GaussianMixture) and teacher.labels is not None
    return torch.cdist(x, teacher.means).masked_fill(teacher.labels != cond[:, None], torch.inf).amin(1).mean().item()


def transport(student: nn.Module, problem: Generative, seed: int) -> float:
    """The sliced Wasserstein distance of 5 000 samples to the problem's reference, in its feature space."""
    x = student_of(student)(*fresh(problem, 5000, seed)).x
    with torch.no_grad():
        return sliced_wasserstein(problem.features(x), problem.features(problem.reference()), seed=seed)


def rerun(trial: Trial, change: Callable[[Stage], Stage]) -> nn.Module:
    """The result of the same recipe with changed stages, under the same seed."""
    stages = tuple(change(stage) if isinstance(stage, Stage) else stage for stage in trial.recipe.stages)
    return run_recipe(replace(trial.recipe, stages=stages), trial.problem, seed=trial.seed).student


def against(
    change: Callable[[Stage], Stage], figure: Callable[[nn.Module, Any, int], float] = transport
) -> Callable[[Trial], float]:
    """A figure of the result over that of the same recipe with changed stages, under the same seed.

    Args:
        change: a stage → that of the baseline; also asked for stages that stay as they are.
        figure: (student, problem, seed) → a number that is better if lower.
    """

    def check(trial: Trial) -> float:
        students = trial.student, rerun(trial, change)
        ours, theirs = (figure(student, trial.problem, trial.seed) for student in students)
        return ours / theirs if theirs else inf if ours else 0.0

    return check


def mode_variance(student: nn.Module, problem: Generative) -> float:
    """The variance of particles within each mode of their class, over the teacher's there; of modes with two or more.

    Particles belong to the nearest mode of their class, and variances are around the particles' own mean.
    """
    teacher = problem.teacher
    assert isinstance(teacher, GaussianMixture) and isinstance(student, Particles)
    draw = student.draw(len(student.x), None, Rng(0))
    x, near = draw.x.detach(), torch.cdist(draw.x.detach(), teacher.means)
    if teacher.labels is not None and isinstance(draw.cond, Tensor):
        near = near.masked_fill(teacher.labels != draw.cond[:, None], torch.inf)
    parts = [(k, x[near.argmin(1) == k]) for k in range(len(teacher.means))]
    ratios = [part.var(0).sum() / (teacher.factor[k] ** 2).sum() for k, part in parts if len(part) > 1]
    return torch.stack(ratios).mean().item()


def variance_error(student: nn.Module, problem: Generative, seed: int) -> float:
    """|v − 1| with v the `mode_variance`."""
    return abs(mode_variance(student, problem) - 1)


@torch.no_grad()
def apart(student: nn.Module, problem: Generative, seed: int, *, ends: slice = slice(None)) -> float:
    """Mean sliced Wasserstein distance of where these steps end to data with so much noise, in units of α² + σ² = 1."""
    assert isinstance(student, Trajectory) and problem.source is not None
    process, (noise, cond, _) = student.process, fresh(problem, 5000, seed)
    distances = []
    for state in [*student.states(noise, cond)][ends]:
        rng, t = Rng((seed, "checkpoint", state.t)), torch.full((len(noise),), state.t, dtype=torch.float64)
        x = problem.source.take(len(noise), rng)["x"]
        eps = rng.normal(*x.shape, dtype=x.dtype)
        scale = like((process.alpha(t) ** 2 + process.sigma(t) ** 2).rsqrt(), x)
        distances.append(sliced_wasserstein(scale * state.x, scale * process.add_noise(x, eps, t), seed=seed))
    return sum(distances) / len(distances)


def pulls(objective: Objective, trial: Trial, *, ticks: int = 1) -> Tensor:
    """What each of the first ticks under an objective would move fresh particles by, [ticks, N, …]; they stay."""
    problem = trial.problem
    with seeded(trial.seed, "pulls"):
        student = FromNoise()(problem)
    start, n, moved = student.x.detach().clone(), len(student.x), list[Tensor]()
    run = distill(problem.teacher, student, objective, steps=10_000, batch=n, optim=SGD(lr=1.0), seed=trial.seed)
    for _ in range(ticks):
        run.tick()
        moved.append(n * (start - student.x.detach()))
        student.x.data.copy_(start)
    return torch.stack(moved)


def overshoot(student: nn.Module, problem: Generative, seed: int) -> float:
    """Mean distance of particles beyond the circle on which the modes are: what over-saturation is in the plane."""
    teacher = problem.teacher
    assert isinstance(teacher, GaussianMixture) and isinstance(student, Particles)
    return (student.x.detach().norm(dim=1) - teacher.means.norm(dim=1).max()).clamp_min(0).mean().item()


def retrained(trial: Trial, change: Callable[[Stage], Stage]) -> nn.Module:
    """The result of a changed last stage on what the earlier stages left, under the same seed."""
    last = trial.recipe.stages[-1]
    assert isinstance(last, Stage)
    return change(last).start(trial.problem, trial.prior, trial.seed).finish()


def last_beats(
    *changes: Callable[[Stage], Stage], figure: Callable[[nn.Module, Any, int], float] = error
) -> Callable[[Trial], float]:
    """`beats` where the last stage alone is changed: baselines start from what the same earlier stages left."""

    def check(trial: Trial) -> float:
        others = [retrained(trial, change) for change in changes]
        ours, *theirs = (figure(student, trial.problem, trial.seed) for student in (trial.student, *others))
        return ours / min(theirs)

    return check


def fitted(objective: Objective, *, steps: int = 100) -> Callable[[nn.Module, Any, int], float]:
    """A figure: the held-out loss of an objective whose projectors learn for so many ticks while the student stays.

    It says how much of what the objective wants is in the student's features, whoever taught it.
    """

    def figure(student: nn.Module, problem: Classification, seed: int) -> float:
        optim = {"default": Adam(lr=5e-3, schedule=Cosine()), "student": SGD(lr=0.0)}
        still, seeds = copy.deepcopy(student), (seed, "fitted")
        run = distill(problem.teacher, still, objective, problem.source, steps=steps, batch=64, optim=optim, seed=seeds)
        run.finish()
        x, y = problem.heldout
        tick = Tick(
            run.cast, Place(seeds, steps, 1.0, slice(0, len(x)), len(x), run.device), {"x": x, "y": y}, frozenset()
        )
        with torch.no_grad(), evaluating(still):
            losses = [term.loss(tick) for term in run.terms]
        return sum(loss.value.mean().item() for loss in losses if isinstance(loss, Loss))

    return figure


def rerun_after(trial: Trial, name: str, change: Callable[[Stage], Stage]) -> nn.Module:
    """The result of the same recipe with the stages after this one changed, and the earlier ones as they were made."""
    prior, after = Prior(trial.prior.root), False
    prior.students.update(trial.prior.students)
    for stage in trial.recipe.stages:
        if after and isinstance(stage, Stage):
            prior.students[stage.name] = change(stage).start(trial.problem, prior, trial.seed).finish()
        after = after or stage.name == name
    return prior.student(trial.recipe.stages[-1].name)


def at(name: str, change: Callable[[Stage], Stage]) -> Callable[[Stage], Stage]:
    """A change of the stage of this name alone."""
    return lambda stage: change(stage) if stage.name == name else stage


def over_least(trial: Trial, *others: nn.Module) -> float:
    """The held-out error of the result over the least of those of others."""
    ours, *theirs = (error(student, trial.problem, trial.seed) for student in (trial.student, *others))
    return ours / min(theirs)
