"""Pictures of results: teacher beside student, same noise and conditions."""

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from limbeck.engine.student import Draw
from limbeck.evaluate.comparison import fresh, student_of, teacher_of
from limbeck.problems.problem import Generative
from limbeck.rng import Rng


def side_by_side(student: nn.Module, problem: Generative, path: Path, *, seed: int = 0) -> Path:
    """Draws teacher and student from one noise into a PNG; returns its path."""
    noise, cond, rng = fresh(problem, problem.shown, seed)
    steps = len(getattr(student, "ratios", ()))
    ours = f"student, {steps} pass{'es' if steps > 1 else ''}" if steps else "student"
    draws = {
        f"teacher, {problem.nfe} network passes": teacher_of(problem)(noise, cond, rng),
        ours: student_of(student)(noise, cond, Rng((seed, "picture"))),
    }
    return picture(problem, draws, path)


def picture(problem: Generative, draws: Mapping[str, Draw], path: Path) -> Path:
    """Draws sets of samples side by side into a PNG; returns its path."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(draws), 4.8), layout="constrained")
    for axes, (title, draw) in zip(figure.subplots(1, len(draws), squeeze=False)[0], draws.items(), strict=True):
        problem.show(axes, draw.x, draw.cond)
        axes.set_title(title)
        axes.set_axis_off()
        axes.set_aspect("equal")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
