"""Pictures of results: student beside teacher, student over time, systems in rows; the same noise and conditions."""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from limbeck.engine.student import Draw, Student
from limbeck.evaluate.comparison import Sampler, fresh, student_of, teacher_of
from limbeck.evaluate.whole import whole
from limbeck.problems.problem import Generative, Problem
from limbeck.rng import Rng, seeded
from limbeck.tree import Tree, rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STRIP = 20
"""Images in a row of `strips`."""

PANELS = 4
"""Panels in a row of `strips` where samples are points."""


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
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(4.5 * len(draws), 4.8), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.12))
    for axes, (title, draw) in zip(figure.subplots(1, len(draws), squeeze=False)[0], draws.items(), strict=True):
        problem.show(axes, draw.x, draw.cond)
        axes.set_title(title)
        axes.set_axis_off()
        axes.set_aspect("equal")
    return _save(figure, path)


# Over time


def moments(problem: Problem, folder: Path, say: Callable[[str], None]) -> Callable[[int, int, nn.Module], None]:
    """What a session is watched with: keeps a picture of its student as ``samples/STAGE-TICK.png``.

    The student and all random numbers are left as they were; a picture that fails is said to, and does not end the run.

    Args:
        problem: what knows how to draw samples.
        folder: the run's.
        say: called with a sentence where there is no picture.
    """

    if isinstance(problem, Generative):
        importlib.import_module("matplotlib.backends.backend_agg")  # now, so that it does not count as training

    def watch(stage: int, i: int, student: nn.Module) -> None:
        if not isinstance(problem, Generative) or not isinstance(student, Student):
            return
        try:
            with seeded("picture"):
                noise, cond, _ = fresh(problem, problem.shown, 0)
                draw = student_of(student)(noise, cond, Rng((0, "picture")))
                bare(problem, draw, folder / "samples" / f"{stage:02d}-{i:08d}.png")
        except Exception as error:  # a user's student, problem or disk; what is wrong with them ends the run elsewhere
            say(f"there is no picture at tick {i}: {type(error).__name__}: {' '.join(str(error).split())}.")

    return watch


def bare(problem: Generative, draw: Draw, path: Path) -> Path:
    """Draws samples alone, without a frame, into a PNG; returns its path."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 4))
    axes = figure.add_axes((0, 0, 1, 1))
    figure.set_size_inches(4, 4 / _show(problem, axes, draw))
    axes.set_axis_off()
    return _save(figure, path, dpi=100)


# Systems in rows


def strips(problem: Generative, students: Mapping[str, nn.Module], path: Path, *, notes: Mapping[str, str]) -> Path:
    """Draws the teacher and then each student as a labelled row of samples into a PNG; returns its path.

    All rows have the same noise and conditions. Images stand side by side; where samples are points, a row has a panel
    for each of a few conditions, or one for all.

    Args:
        problem: what knows how to draw samples.
        students: by label.
        path: of the PNG.
        notes: what stands below a label, such as figures.
    """
    draws = {"teacher": _first(problem, teacher_of(problem), None)}
    for label, student in students.items():
        draws[label] = _first(problem, student_of(student), getattr(student, "size", None))
    classes = 0 if _is_image(problem) else _classes(draws["teacher"].cond)
    table = {label: _by_class(draw, classes) if classes else [draw] for label, draw in draws.items()}
    return _save(_in_rows(problem, table, {"teacher": f"{problem.nfe} passes", **notes}), path)


def _first(problem: Generative, sampler: Sampler, size: int | None) -> Draw:
    """The samples of a row: the first of all where there are only so many."""
    shown = STRIP if _is_image(problem) else problem.shown
    noise, cond, _ = fresh(problem, size or shown, 0)
    draw = sampler(noise, cond, Rng((0, "picture")))
    n = min(shown, len(draw.x))
    return Draw(draw.x[:n], rows(draw.cond, slice(n)))


def _is_image(problem: Generative) -> bool:
    return len(problem.shape) > 1


def _classes(cond: Tree) -> int:
    """How many classes these conditions are, if they are classes and few; else 0."""
    if not isinstance(cond, Tensor) or cond.dim() != 1 or cond.is_floating_point():
        return 0
    return count if (count := int(cond.max()) + 1) <= PANELS else 0


def _by_class(draw: Draw, classes: int) -> list[Draw]:
    return [Draw(draw.x[draw.cond == k], draw.cond[draw.cond == k]) for k in range(classes)]


WIDE, LABEL, SPACE = 12.0, 3.1, 0.14
"""Of a picture in rows, in inches: its width, its labels', and the space between panels."""


def _in_rows(problem: Generative, table: Mapping[str, list[Draw]], notes: Mapping[str, str]) -> "Figure":
    """Labels on the left, panels on the right; every row as high as its panels need."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDE, 1))
    count = len(table["teacher"])
    wide = (WIDE - LABEL) / (1 if count == 1 and _is_image(problem) else PANELS) - SPACE
    drawn: dict[str, list[Axes]] = {}
    high: dict[str, float] = {}
    for label, draws in table.items():
        drawn[label] = [figure.add_axes((0, 0, 1, 1), label=f"{label} {k}") for k in range(count)]
        high[label] = wide / min(_show(problem, *pair) for pair in zip(drawn[label], draws, strict=True))
    titles = 0.25 if count > 1 else 0.0
    total = sum(high.values()) + SPACE * (len(high) + 1) + titles
    figure.set_size_inches(WIDE, total)
    top = total - SPACE - titles
    for label, panels in drawn.items():
        for k, axes in enumerate(panels):
            left = LABEL + k * (wide + SPACE)
            axes.set_position((left / WIDE, (top - high[label]) / total, wide / WIDE, high[label] / total))
            if count > 1:
                for points in axes.collections:
                    points.set_clim(0, count - 1)  # a class has its colour in every panel
                axes.set_title(f"condition {k}" if label == "teacher" else "", size=9, color="0.4")
        middle = (top - high[label] / 2) / total
        figure.text(0.01, middle, label, weight="bold", size=11, va="bottom")
        figure.text(0.01, middle - 0.04 / total, notes.get(label, ""), size=9, color="0.4", va="top")
        top -= high[label] + SPACE
    return figure


def _show(problem: Generative, axes: "Axes", draw: Draw) -> float:
    """Draws samples into axes without numbers; returns their width over their height."""
    problem.show(axes, draw.x, draw.cond)
    axes.set(xticks=[], yticks=[], xlabel="", ylabel="", aspect="equal")
    axes.spines[:].set_color("0.85")
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    return abs(x1 - x0) / abs(y1 - y0)


def _save(figure: "Figure", path: Path, dpi: int = 120) -> Path:
    """Writes a PNG whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        figure.savefig(partial, dpi=dpi, format="png")
    return path
