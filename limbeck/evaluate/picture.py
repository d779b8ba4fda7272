"""Pictures of results: teacher beside student, same noise and conditions."""

from pathlib import Path

from torch import nn

from limbeck.evaluate.judge import fresh, student_of, teacher_of
from limbeck.problems.problem import Generative
from limbeck.rng import Rng


def side_by_side(student: nn.Module, problem: Generative, path: Path, *, seed: int = 0) -> Path:
    """Draws teacher and student from one noise into a PNG; returns its path."""
    from matplotlib.figure import Figure

    noise, _, rng = fresh(problem, problem.shown, seed)
    cond = problem.display(problem.shown)
    teacher = teacher_of(problem)(noise, cond, rng)
    ours = student_of(student)(noise, cond, Rng((seed, "picture")))
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    titles = (f"teacher, {problem.nfe} network passes", "student, one pass" if _one(student) else "student")
    for axes, draw, title in zip(figure.subplots(1, 2), (teacher, ours), titles, strict=True):
        problem.show(axes, draw.x, draw.cond)
        axes.set_title(title)
        axes.set_axis_off()
        axes.set_aspect("equal")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def _one(student: nn.Module) -> bool:
    return len(getattr(student, "ratios", ())) == 1
