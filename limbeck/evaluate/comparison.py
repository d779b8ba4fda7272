"""A student beside its teacher: the same noise and conditions, the same judge."""

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from limbeck.diffusion.denoiser import Denoiser
from limbeck.engine.student import Draw, Student
from limbeck.errors import Incompatible
from limbeck.evaluate.classification import judge_classifier
from limbeck.evaluate.metrics import energy_distance, frechet, nearest_distance, prdc
from limbeck.problems.problem import Classification, Generative, Problem, evaluating, home_of
from limbeck.rng import Rng
from limbeck.students.generator import FewStep
from limbeck.tree import Tree, moved, rows

Sampler = Callable[[Tensor, Tree, Rng], Draw]
"""(standard normal noise [n, …], conditions, random numbers) → samples with their conditions."""


def judge(sampler: Sampler, problem: Generative, *, n: int = 5000, seed: int = 0) -> dict[str, float]:
    """Quality of n samples under fresh noise and the data's conditions.

    Returns:
        ``frechet`` and ``energy`` distances to the reference, ``precision``, ``recall``, ``density`` and ``coverage``
        (k = 5), ``accuracy`` (the share that is what its condition asks for), ``nearest`` (mean distance to the nearest
        reference in feature space; far below that of held-out data it means memorisation), and ``seconds_per_1000``
        samples.

    >>> from limbeck.problems.mixture2d import Mixture2D
    >>> problem = Mixture2D()
    >>> figures = judge(teacher_of(problem), problem, n=256)
    >>> figures["frechet"] < 0.1 and figures["accuracy"] > 0.9
    True
    """
    noise, cond, rng = fresh(problem, n, seed)
    began = time.perf_counter()
    parts = [slice(i, i + 1000) for i in range(0, n, 1000)]
    draws = [sampler(noise[part], rows(cond, part), rng) for part in parts]
    seconds = time.perf_counter() - began
    x, agree = torch.cat([draw.x for draw in draws]), [problem.agrees(draw.x, draw.cond) for draw in draws]
    accuracy = torch.cat(agree).double().mean().item()
    return {**distances(x, problem), "accuracy": accuracy, "seconds_per_1000": seconds * 1000 / n}


@torch.no_grad()
def distances(x: Tensor, problem: Generative) -> dict[str, float]:
    """How far samples x [n, …] are from the problem's reference, in its feature space."""
    fake, real = problem.features(x), problem.features(problem.reference())
    nearest = nearest_distance(fake, real).mean().item()
    figures = {"frechet": frechet(real, fake), "energy": energy_distance(real, fake)}
    return {**figures, **prdc(real, fake), "nearest": nearest}


def fresh(problem: Generative, n: int, seed: int) -> tuple[Tensor, Tree, Rng]:
    """Noise and a generator that no training has seen, and conditions as they occur in the data."""
    rng = Rng((seed, "judge", problem.name))
    return rng.normal(n, *problem.shape), problem.spread(n), rng


def student_of(student: nn.Module) -> Sampler:
    """A student as a sampler: a generator by all of its steps, any other by its draws.

    Raises:
        Incompatible: something that draws no samples.
    """
    if not isinstance(student, Student):
        raise Incompatible("evaluation", need="a student that draws samples", got=f"a {type(student).__name__}")

    @torch.no_grad()
    def sampler(noise: Tensor, cond: Tree, rng: Rng) -> Draw:
        there = home_of(student)
        if there != rng.device:
            rng, cond = Rng(rng.integer(2**62), device=there), moved(cond, there)
        with evaluating(student):
            if isinstance(student, FewStep):
                draw = Draw(student.generate(noise.to(there), cond, rng), cond)
            else:
                draw = student.draw(len(noise), cond, rng)
        return replace(draw, x=draw.x.to(noise.device), cond=moved(draw.cond, noise.device))

    return sampler


def teacher_of(problem: Generative) -> Sampler:
    """The problem's teacher with its full sampler."""
    return lambda noise, cond, rng: Draw(problem.teacher_sample(noise, cond), cond)


def _judged(student: nn.Module, problem: Problem) -> bool:
    """Whether a student is of the kind that the problem has figures for."""
    if isinstance(problem, Classification):
        with torch.no_grad(), evaluating(student):
            out = student(problem.heldout[0][:2])
        return isinstance(out, Tensor) and out.shape == (2, problem.classes)
    return isinstance(problem, Generative) and not isinstance(student, Denoiser)


def evaluate(student: nn.Module, problem: Problem, *, n: int | None = None, seed: int = 0) -> dict[str, float]:
    """Student and teacher before the same judge; the teacher's figures end in ``_teacher``.

    Where the problem has held-out data, their distances to the reference end in ``_heldout``: what real samples that
    nobody trained on would get.

    There are no figures, where a problem is of another kind, or a student something else than the problem judges: an
    encoder, a denoiser. What its system claims is measured by the claim's check alone.

    Raises:
        Incompatible: a student that the problem cannot judge.
    """
    if not _judged(student, problem):
        return {}
    if isinstance(problem, Classification):
        theirs, ours = (judge_classifier(model, problem) for model in (problem.teacher, student))
    elif isinstance(problem, Generative):
        n = n or problem.judged
        n = min(n, getattr(student, "size", None) or n)
        nfe = len(student.ratios) if isinstance(student, FewStep) else 0
        ours = {**judge(student_of(student), problem, n=n, seed=seed), "nfe": nfe}
        theirs = {**judge(teacher_of(problem), problem, n=n, seed=seed), "nfe": problem.nfe}
    else:
        return {}
    sides = {"teacher": theirs}
    if isinstance(problem, Generative) and (unseen := problem.unseen()) is not None:
        sides["heldout"] = distances(unseen, problem)
    return {**ours, **{f"{name}_{side}": value for side, part in sides.items() for name, value in part.items()}}
