"""Systems side by side on one problem: the same seed, the same judge, a process and a run's folder for each.

Each system is run by ``limbeck distill`` in a process of its own, so that the memory of one does not count for another
and what ends one does not end the others. Seconds and memory are what the run itself has noted, see
`limbeck.evaluate.cost`: of training, without imports, set-up and judging; and the most resident memory of that process,
with Python and torch in it.
"""

import json
import math
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from limbeck import loading
from limbeck.commands import console, to_json
from limbeck.engine.checkpoint import writing
from limbeck.engine.run import Session
from limbeck.errors import BadFile, BadSetting, Failed, LimbeckError
from limbeck.evaluate.cost import cost
from limbeck.evaluate.picture import strips
from limbeck.evaluate.report import beside, duration, label, number
from limbeck.evaluate.whole import whole
from limbeck.problems.problem import Generative, Problem

IN_FILE_ONLY = {"energy", "density", "coverage", "nearest"}
"""Figures that ``compare.json`` has, but for which a line has no room."""

Figures = Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A system that takes part.

    Args:
        system: its id, or the path of a recipe.
        folder: where it runs.
        values: the settings that it takes.
        left_out: those that it does not, and why.
        record: what its ``recipe.json`` says.
    """

    system: str
    folder: Path
    values: Mapping[str, str]
    left_out: Mapping[str, str]
    record: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Row:
    """What came of a system, as ``compare.json`` has it.

    Args:
        id: of the system.
        settings: what it was given.
        left_out: what it does not take, and why.
        size: how many samples it has, if it cannot draw new ones; then it is judged on those.
        training_seconds: in all attempts together; None if that is not known, as after an attempt that was killed.
        peak_memory: in bytes; None as well.
        figures: the problem's.
        teacher: those of the teacher under the same noise.
    """

    id: str
    settings: Mapping[str, str]
    left_out: Mapping[str, str]
    size: int | None
    training_seconds: float | None
    peak_memory: int | None
    figures: Figures
    teacher: Figures


def compare(
    systems: Sequence[str],
    unmade: Sequence[str],
    on: str,
    values: Mapping[str, str],
    seed: int,
    out: Path,
    quiet: bool,
    given: Mapping[str, str] | None = None,
) -> int:
    """Runs systems on a problem; prints, draws and writes what came of it. What has finished is not run again.

    Args:
        systems: with a recipe.
        unmade: systems without one, which are listed.
        on: the problem.
        values: settings; each goes to the systems that have it.
        seed: of every run.
        out: holds ``compare.json``, ``compare.png`` and a run's folder for each system.
        quiet: print what ``compare.json`` has, and nothing else.
        given: what the problem needs beside its name; see `limbeck.loading.load_problem`.

    Raises:
        BadSetting, Incompatible: systems or settings with which nothing can be done.
        BadFile: a folder that holds something else.
        Failed: no system came to its end.
    """
    tell = Console(stderr=True, highlight=False, markup=False) if quiet else console
    problem = loading.load_problem(on, given)
    torch.set_num_threads(problem.threads or torch.get_num_threads())
    skipped = dict.fromkeys(unmade, UNMADE)
    entries = _entries(systems, problem, on, values, seed, out, skipped, given)
    head = {"problem": entries[0].record["problem"], "seed": seed, "settings": dict(values)}
    if given:
        head["given"] = entries[0].record["given"]
    _check_folder(out, head)
    for entry in entries:
        _check_run(entry)
    ended: dict[str, tuple[Row, nn.Module]] = {}
    for k, entry in enumerate(entries):
        with writing(out, BadFile):
            _write(out, head, [row for row, _ in ended.values()], skipped)
        tell.print(f"{_id(entry.system)}, {k + 1} of {len(entries)}", *_left_out(entry), sep="\n", soft_wrap=True)
        session, why = _result(entry, on, seed, quiet)
        if session is not None:
            ended[_id(entry.system)] = _row(entry, session), session.student
        elif why is not None:
            skipped[_id(entry.system)] = why
        else:
            tell.print("interrupted; the same command goes on")
            return 130
    return _close(ended, problem, out, head, skipped, quiet)


UNMADE = "has no recipe yet."


def _close(
    ended: Mapping[str, tuple[Row, nn.Module]],
    problem: Problem,
    out: Path,
    head: Mapping[str, Any],
    skipped: Mapping[str, str],
    quiet: bool,
) -> int:
    """Table, picture and file of what has ended."""
    rows = [row for row, _ in ended.values()]
    with writing(out):
        _write(out, head, rows, skipped)
        if not rows:
            raise Failed("no system came to its end; " + "; ".join(f"{name}: {why}" for name, why in skipped.items()))
        if isinstance(problem, Generative):
            students = {name: student for name, (_, student) in ended.items()}
            strips(problem, students, out / "compare.png", notes={row.id: _note(row) for row in rows})
    if quiet:
        print((out / "compare.json").read_text(), end="")
    else:
        _print(rows, skipped)
        console.print(f"comparison: {out}", soft_wrap=True)
    return 0


# Who takes part


def _entries(
    systems: Sequence[str],
    problem: Problem,
    on: str,
    values: Mapping[str, str],
    seed: int,
    out: Path,
    skipped: dict[str, str],
    given: Mapping[str, str] | None = None,
) -> list[Entry]:
    """The systems that can run on the problem; the others are added to those skipped, with what they say."""
    if twice := [name for name in systems if [*map(_id, systems)].count(_id(name)) > 1]:
        raise BadSetting(f"systems need different names, got {' and '.join(twice)}.")
    entries: list[Entry] = []
    first: LimbeckError | None = None
    for system in systems:
        try:
            entries.append(_entry(system, problem, on, values, seed, out / _id(system), given))
        except LimbeckError as error:
            first, skipped[_id(system)] = first or error, str(error)
    if not entries:
        assert first is not None
        raise first if len(systems) == 1 else BadSetting(f"none of {len(systems)} systems runs on {on}: {first}")
    nobody = [path for path in values if all(path in entry.left_out for entry in entries)]
    if nobody:
        raise BadSetting(entries[0].left_out[nobody[0]])
    return entries


def _entry(
    system: str,
    problem: Problem,
    on: str,
    values: Mapping[str, str],
    seed: int,
    folder: Path,
    given: Mapping[str, str] | None = None,
) -> Entry:
    """A system with those of the settings that it takes; checked as far as it can be before it runs."""
    loading.load_recipe(system, problem)
    left_out: dict[str, str] = {}
    try:
        recipe = loading.load_recipe(system, problem, values)
    except BadSetting:  # not all of them; those that it takes by themselves
        for path, value in values.items():
            try:
                loading.load_recipe(system, problem, {path: value})
            except BadSetting as error:
                left_out[path] = str(error)
        values = {path: value for path, value in values.items() if path not in left_out}
        recipe = loading.load_recipe(system, problem, values)
    if not _begun(folder):
        Session(recipe, problem, folder, seed=seed)  # says what does not fit
    record = json.loads(json.dumps(loading.describe(system, on, seed, values, recipe, 1, given)))
    return Entry(system=system, folder=folder, values=values, left_out=left_out, record=record)


def _id(system: str) -> str:
    return Path(system).stem if system.endswith(".py") else system


def _left_out(entry: Entry) -> list[str]:
    return [f"  without --{path}: {why}" for path, why in entry.left_out.items()]


# Folders


def _check_folder(out: Path, head: Mapping[str, Any]) -> None:
    """Raises `BadFile` where a folder holds another comparison, or something else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / "compare.json").is_file():
        raise BadFile(f"{out} holds something else than a comparison; choose another --out.")
    try:
        old = json.loads((out / "compare.json").read_text())
        was = {key: old[key] for key in head}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadFile(f"{out}/compare.json is not a readable comparison: {error}.") from None
    if other := next((key for key in head if was[key] != head[key]), None):
        got = f"{other} {was[other]}, not {head[other]}"
        raise BadFile(f"{out} is a comparison with {got}; choose another --out.")


def _check_run(entry: Entry) -> None:
    """Raises `BadFile` where a system's folder holds a run with other settings."""
    if not _begun(entry.folder):
        return
    old = loading.read_description(entry.folder / "recipe.json")
    was, now = ({"given": {}, **one, **one["settings"]} for one in (old, entry.record))
    asked = ["system", "problem", "given", "seed", *dict.fromkeys([*was["settings"], *now["settings"]])]
    if other := next((key for key in asked if was.get(key) != now.get(key)), None):
        got = f"{other} {was.get(other)}, not {now.get(other)}"
        raise BadFile(f"{entry.folder} was begun with {got}; choose another --out.")


def _begun(folder: Path) -> bool:
    return (folder / "recipe.json").exists()


def _write(out: Path, head: Mapping[str, Any], rows: Sequence[Row], skipped: Mapping[str, str]) -> None:
    left = [{"id": name, "why": why} for name, why in skipped.items()]
    text = to_json({**head, "systems": [asdict(row) for row in rows], "teacher": _teacher(rows), "skipped": left})
    out.mkdir(parents=True, exist_ok=True)
    with whole(out / "compare.json") as partial:
        partial.write_text(text + "\n")


# Runs


def _result(entry: Entry, on: str, seed: int, quiet: bool) -> tuple[Session | None, str | None]:
    """The finished run of a system, or why there is none; neither if it was interrupted."""
    try:
        if (entry.folder / "result.json").exists():
            return loading.load_run(entry.folder), None
    except LimbeckError:  # it goes on, or is made again
        pass
    code, why = _run(entry, on, seed, quiet)
    if code == 0:
        return loading.load_run(entry.folder), None
    return None, None if code == 130 else why


def _run(entry: Entry, on: str, seed: int, quiet: bool) -> tuple[int, str]:
    """Runs a system in a process of its own, or goes on with it; its exit code, and what it said if that is not 0."""
    settings = [f"--{path}={value}" for path, value in entry.values.items()]
    given = [f"--{key}={value}" for key, value in entry.record.get("given", {}).items()]
    resume = ["--resume"] if _begun(entry.folder) else []
    command = [sys.executable, "-m", "limbeck", "distill", entry.system, f"--on={on}", f"--seed={seed}"]
    child = subprocess.Popen(
        [*command, f"--out={entry.folder}", *resume, *given, *settings],
        stdout=2 if quiet else None,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # what the terminal sends to all is passed on once, by us
    )
    with _passing_on(child) as stopped:
        said = child.communicate()[1]
    if child.returncode and stopped:
        return 130, ""
    if not child.returncode:
        sys.stderr.write(said)
        return 0, ""
    last = (said.strip().splitlines() or [f"ended with exit code {child.returncode}."])[-1]
    return child.returncode, last.removeprefix("limbeck: ")


@contextmanager
def _passing_on(child: "subprocess.Popen[str]") -> Iterator[list[int]]:
    """SIGINT and SIGTERM go to the child, which ends with a checkpoint; gives those that came."""
    came: list[int] = []

    def pass_on(number: int, _: object) -> None:
        came.append(number)
        child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _row(entry: Entry, session: Session) -> Row:
    path = entry.folder / "result.json"
    try:
        sides, table = beside(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BadFile(f"{path} holds no figures: {error}.") from None
    spent = cost(entry.folder)
    teacher = 1 + sides.index("teacher") if "teacher" in sides else None
    return Row(
        id=_id(entry.system),
        settings=entry.values,
        left_out=entry.left_out,
        size=getattr(session.student, "size", None),
        training_seconds=spent.seconds if spent else None,
        peak_memory=spent.peak if spent else None,
        figures={name: values[0] for name, values in table.items()},
        teacher={name: values[teacher] for name, values in table.items()} if teacher else {},
    )


# Tables


def _teacher(rows: Sequence[Row]) -> Figures:
    """The teacher's figures, from where it was judged on the most samples."""
    return max(rows, key=lambda row: row.size or math.inf).teacher if rows else {}


def _note(row: Row) -> str:
    """What stands below a system's name in the picture."""
    known = {name: row.figures.get(name) for name in ("nfe", "frechet", "accuracy")}
    if not known["nfe"]:  # what is its own samples takes no passes
        del known["nfe"]
    return ", ".join(f"{label(name)} {value:.3g}" for name, value in known.items() if value is not None)


def _print(rows: Sequence[Row], skipped: Mapping[str, str]) -> None:
    """A row for each system, the teacher last, and who did not run."""
    names = [name for name in dict.fromkeys(n for row in rows for n in row.figures) if name not in IN_FILE_ONLY]
    heads = [label(name).replace("seconds per ", "s per ") for name in names]
    table = Table("", *heads, "training", "peak memory", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        training = "–" if row.training_seconds is None else duration(row.training_seconds)
        peak = "–" if row.peak_memory is None else f"{row.peak_memory / 1e6:,.0f} MB"
        table.add_row(row.id, *(number(row.figures.get(name)) for name in names), training, peak)
    teacher = _teacher(rows)
    table.add_row("teacher", *(number(teacher.get(name)) for name in names))
    wide = console if console.is_terminal else Console(width=max(console.width, 160), highlight=False, markup=False)
    wide.print(table)
    for size in sorted({row.size for row in rows if row.size is not None}):
        few = ", ".join(row.id for row in rows if row.size == size)
        wide.print(f"judged on the {size} samples that it has, which makes distances larger: {few}.", soft_wrap=True)
    if unmade := [name for name, why in skipped.items() if why == UNMADE]:
        wide.print(f"without a recipe yet: {', '.join(unmade)}.", soft_wrap=True)
    for name, why in skipped.items():
        if name not in unmade:
            wide.print(f"{name} did not run: {why}", soft_wrap=True)
