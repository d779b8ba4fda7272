"""A student beside its teacher: the same noise and conditions, the same judge."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from limbeck.engine.student import Draw, Student
from limbeck.errors import Incompatible
from limbeck.evaluate.metrics import energy_distance, frechet, nearest_distance, precision_recall
from limbeck.problems.problem import Classification, Generative, Problem
from limbeck.rng import Rng
from limbeck.students.generator import FewStep
from limbeck.tree import Tree, rows

Sampler = Callable[[Tensor, Tree, Rng], Draw]
"""(standard normal noise [n, …], conditions, random numbers) → samples with their conditions."""


def judge(sampler: Sampler, problem: Generative, *, n: int = 5000, seed: int = 0) -> dict[str, float]:
    """Quality of n samples under fresh noise and the data's conditions.

    Returns:
        ``frechet`` and ``energy`` distances to the reference, ``precision`` and ``recall`` (k = 5), ``accuracy`` (the
        share that is what its condition asks for), ``nearest`` (mean distance to the nearest reference in feature
        space; far below that of held-out data it means memorisation), and ``seconds_per_1000`` samples.

    >>> from limbeck.problems.mixture2d import Mixture2D
    >>> problem = Mixture2D()
    >>> figures = judge(teacher_of(problem), problem, n=256)
    >>> figures["frechet"] < 0.1 and figures["accuracy"] > 0.9
    True
    """
    noise, cond, rng = fresh(problem, n, seed)
    began = time.perf_counter()
    draws = [sampler(noise[i : i + 1000], rows(cond, slice(i, i + 1000)), rng) for i in range(0, n, 1000)]
    seconds = time.perf_counter() - began
    with torch.no_grad():
        x = torch.cat([draw.x for draw in draws])
        fake, real = problem.features(x), problem.features(problem.reference())
        precision, recall = precision_recall(real, fake)
        return {
            "frechet": frechet(real, fake),
            "energy": energy_distance(real, fake),
            "precision": precision,
            "recall": recall,
            "accuracy": torch.cat([problem.agrees(draw.x, draw.cond) for draw in draws]).double().mean().item(),
            "nearest": nearest_distance(fake, real).mean().item(),
            "seconds_per_1000": seconds * 1000 / n,
        }


def fresh(problem: Generative, n: int, seed: int) -> tuple[Tensor, Tree, Rng]:
    """Noise and a generator that no training has seen, and conditions as they occur in the data."""
    rng = Rng((seed, "judge", problem.name))
    return rng.normal(n, *problem.shape), problem.spread(n), rng


def student_of(student: nn.Module) -> Sampler:
    """A student as a sampler: a generator by all of its steps, any other by its draws.

    Raises:
        Incompatible: something that draws no samples.
    """
    if isinstance(student, FewStep):
        return lambda noise, cond, rng: Draw(student.generate(noise, cond, rng), cond)
    if isinstance(student, Student):
        return torch.no_grad()(lambda noise, cond, rng: student.draw(len(noise), cond, rng))
    raise Incompatible("evaluation", need="a student that draws samples", got=f"a {type(student).__name__}")


def teacher_of(problem: Generative) -> Sampler:
    """The problem's teacher with its full sampler."""
    return lambda noise, cond, rng: Draw(problem.teacher_sample(noise, cond), cond)


def evaluate(student: nn.Module, problem: Problem, *, n: int = 5000, seed: int = 0) -> dict[str, float]:
    """Student and teacher before the same judge; the teacher's figures end in ``_teacher``.

    Raises:
        Incompatible: a student that the problem cannot judge.
    """
    if isinstance(problem, Classification):
        theirs = {"accuracy": problem.accuracy(problem.teacher), "parameters": parameters(problem.teacher)}
        ours = {"accuracy": problem.accuracy(student), "parameters": parameters(student)}
    elif isinstance(problem, Generative):
        nfe = len(student.ratios) if isinstance(student, FewStep) else 0
        ours = {**judge(student_of(student), problem, n=n, seed=seed), "nfe": nfe}
        theirs = {**judge(teacher_of(problem), problem, n=n, seed=seed), "nfe": problem.nfe}
    else:
        raise Incompatible("evaluation", need="a generative or classification problem", got=type(problem).__name__)
    return {**ours, **{f"{name}_teacher": value for name, value in theirs.items()}}


def parameters(module: nn.Module) -> int:
    """How many numbers a module holds."""
    return sum(p.numel() for p in module.parameters())
