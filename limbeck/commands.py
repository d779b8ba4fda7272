"""What the commands do once torch is needed."""

import inspect
import json
import math
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from safetensors.torch import save_file
from torch import nn

from limbeck import catalogue, loading
from limbeck.engine.checkpoint import flatten, writing
from limbeck.engine.loop import Step
from limbeck.engine.ranks import leads, meet, together
from limbeck.engine.recipe import Recipe, Stage
from limbeck.engine.run import Session, run_recipe
from limbeck.engine.settings import settings as settings_of
from limbeck.errors import BadFile, BadSetting, Diverged, Failed, LimbeckError
from limbeck.evaluate import comparison
from limbeck.evaluate.cost import attempt
from limbeck.evaluate.models import figures_of
from limbeck.evaluate.picture import moments, picture, side_by_side
from limbeck.evaluate.report import About, beside, number, reporting, write_report
from limbeck.problems.problem import Generative, Problem
from limbeck.trackers import Name, Tracking, choose, tracking

console = Console(highlight=False, markup=False)


def say(text: str) -> None:
    """Prints a line for the user."""
    console.print(text, soft_wrap=True)


def to_json(data: object) -> str:
    """JSON as its standard has it: a figure that is not finite is null."""
    return json.dumps(json.loads(json.dumps(data), parse_constant=lambda _: None), indent=1, ensure_ascii=False)


def show(name: str) -> int:
    """Prints what a system is made of."""
    recipe = loading.load_recipe(name, loading.default_problem(name))
    console.print(_doc(name))
    for stage in recipe.stages:
        for part in objectives_of(stage):
            console.print(f"\n{type(part).__name__}: {(inspect.getdoc(type(part)) or '').partition('>>>')[0].strip()}")
    console.print(f"\nPaper: {recipe.paper.authors}, arXiv {recipe.paper.arxiv}")
    console.print(f"Claim, on {recipe.claim.on}: {recipe.claim.text}")
    table = Table("setting", "default", box=None)
    for path, value in settings_of(recipe).items():
        table.add_row(path, str(value))
    console.print(table)
    return 0


def objectives_of(stage: object) -> Iterator[object]:
    """The objectives of a stage, summands one by one."""
    from limbeck.engine.objective import Scaled, parts_of

    if isinstance(stage, Stage):
        for part in parts_of(stage.objective):
            yield part.objective if isinstance(part, Scaled) else part


@together()
def distill(
    system: str,
    on: str | None,
    values: dict[str, str],
    checkpoint_every: int,
    seed: int | None,
    out: Path | None,
    resume: bool,
    track: Name | None = None,
    device: str | None = None,
    given: dict[str, str] | None = None,
    judge: int | None = None,
) -> int:
    """Runs a recipe in a folder, to its end or to a checkpoint; as one run where ``torchrun`` started several of us."""
    if judge is not None and judge < 10 and judge != 0:
        raise BadSetting(f"judge must be 0 or at least 10, got {judge}.")
    if checkpoint_every < 0:
        raise BadSetting(f"checkpoint-every must be at least 0, got {checkpoint_every}.")
    console.quiet = not leads()
    record, where, problem = _start(system, on, values, seed, out, resume, given or {}, device)
    track = choose(track, where)
    torch.set_num_threads(record["threads"])
    recipe = loading.rebuild(record, problem)
    watch = moments(problem, where, say) if leads() else unseen
    with _undone(where):
        problem.keep(where)
        session = Session(
            recipe,
            problem,
            where,
            seed=record["seed"],
            device=loading.device_of(record),
            checkpoint_every=checkpoint_every,
            say=say,
            watch=watch,
        )
    if resume:
        _say_where(session)
    meet()  # all have read the folder
    if not leads():
        with stop_on_signals(session), suppress(KeyboardInterrupt):
            for _ in session:
                pass
        return 0 if session.finished else 130
    about = _about(record, recipe, problem)
    _write_record(where, record)
    with tracking(track, session, record["settings"], say) as tracked:
        with reporting(session, about) as report, attempt(where), stop_on_signals(session), suppress(KeyboardInterrupt):
            _follow(session, report, tracked)
        if not session.finished:
            say(f"interrupted; go on with --out {where} --resume")
            return 130
        _judge(session, about, tracked, judge)
    say(f"run: {where}")
    return 0


def _judge(session: Session, about: About, tracked: Tracking, n: int | None) -> None:
    """Prints, shows and keeps how good a finished result is, by so many samples."""
    where, problem = session.folder, session.problem
    if n is not None and isinstance(problem, Generative):
        problem.judged = n
    try:
        figures = {} if n == 0 else figures_of(session.student, problem)
    except LimbeckError as error:
        raise Failed(f"{where} has finished, but its result cannot be judged: {error}") from error
    _print_figures(figures)
    with writing(where):
        (where / "result.json").write_text(to_json(figures))
        if isinstance(problem, Generative) and n != 0:
            side_by_side(session.student, problem, where / "samples" / "final.png")
        tracked.figures(figures)
        write_report(where, about, "finished")


def unseen(stage: int, i: int, student: nn.Module) -> None:
    """No picture: another process makes it."""


def _start(
    system: str,
    on: str | None,
    values: dict[str, str],
    seed: int | None,
    out: Path | None,
    resume: bool,
    given: dict[str, str],
    device: str | None,
) -> tuple[dict[str, Any], Path, Problem]:
    """What to run, as ``recipe.json`` describes it, in which folder and on what; nothing is written yet."""
    again = loading.read_description(Path(system)) if system.endswith(".json") else None
    if again is not None:
        given = {**(again["given"] if on is None else {}), **given}
        system, on, seed = again["system"], on or again["problem"], again["seed"] if seed is None else seed
    assert on is not None
    where = out or Path("runs") / f"{Path(system).stem}-{Path(on).stem}"
    begun = any((where / name).exists() for name in ("recipe.json", "checkpoint", "stages"))
    if begun and not resume:
        raise BadFile(f"{where} already holds a run; add --resume to go on, or choose another --out.")
    if where.exists() and not where.is_dir():
        raise BadFile(f"{where} is a file; choose another --out.")
    if begun and not given and (where / "recipe.json").exists():
        given = loading.read_description(where / "recipe.json")["given"]
    problem = loading.load_problem(on, given, where if begun else None)
    if again is not None:
        values, recipe = loading.vary(again, problem, values)
    else:
        recipe = loading.load_recipe(system, problem, values)
    threads = problem.threads or torch.get_num_threads()
    record = loading.describe(system, on, seed or 0, values, recipe, threads, given)
    if device or (torch.cuda.is_available() and problem.device == "cuda"):
        record["device"] = device or problem.device
    loading.device_of(record)
    if not begun:
        if resume:
            say(f"{where} holds no run; starting from the beginning.")
        return record, where, problem
    old = loading.read_description(where / "recipe.json")
    was, now = ({"given": {}, **one, **one["settings"]} for one in (old, json.loads(json.dumps(record))))
    said = {"system": system, "problem": on, "given": given, "seed": seed, "device": device}
    asked = [name for name, value in said.items() if value is not None]
    asked += [*old["settings"], *record["settings"]] * bool(values or again)
    if other := next((key for key in asked if now.get(key) != was.get(key)), None):
        got = f"{other} {was.get(other)}, not {now.get(other)}"
        raise BadSetting(f"{where} was begun with {got}; ask for the same or nothing, or choose another --out.")
    return old, where, problem


@contextmanager
def _undone(where: Path) -> Iterator[None]:
    """A run that is refused inside leaves no folder where there was none."""
    there = where.exists()
    try:
        yield
    except BaseException:
        if leads() and not there and not (where / "recipe.json").exists():  # which another run would have begun
            shutil.rmtree(where, ignore_errors=True)
        raise


def _write_record(where: Path, record: dict[str, Any]) -> None:
    with writing(where, BadFile):
        where.mkdir(parents=True, exist_ok=True)
        if not (where / "recipe.json").exists():
            partial = where / ".recipe.json.partial"
            partial.write_text(json.dumps(record, indent=1, ensure_ascii=False))
            partial.replace(where / "recipe.json")


def _say_where(session: Session) -> None:
    index, i = session.position
    if session.finished:
        say("this run has finished.")
    elif i or index:
        say(f"resuming at stage {session.recipe.stages[index].name}, tick {i}.")
    elif (session.folder / "recipe.json").exists():
        say("there is no whole checkpoint; starting from the beginning.")


def _about(record: dict[str, Any], recipe: Recipe, problem: Problem) -> About:
    system = record["system"]
    title = {known.id: known.title for known in catalogue.systems()}.get(system) or _doc(system).partition("\n")[0]
    try:
        usual = loading.load_recipe(system, problem)
    except LimbeckError:  # a recipe of a user's own may not go without some argument
        usual = loading.load_recipe(system, problem, record["arguments"])
    return About(title=title, record=record, recipe=recipe, usual=usual)


def _doc(name: str) -> str:
    """The text at the top of a recipe's file."""
    module = sys.modules[loading.function(catalogue.find_recipe(name), "recipe").__module__]
    return (module.__doc__ or name).strip()


@contextmanager
def stop_on_signals(session: Session) -> Iterator[None]:
    """SIGINT and SIGTERM end the run after the tick under way, with a checkpoint; a `Make` is left at once."""

    def stop(*_: object) -> None:
        session.stopping = True
        if session.run is None:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _follow(session: Session, report: Callable[[], None], tracked: Tracking) -> None:
    """Progress with rate, remaining time and live metrics; a line now and then where there is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[metrics]}", markup=False),
    )
    means: dict[str, float] = {}
    began, skipped = time.monotonic(), 0
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task, current = None, None
        for stage, step in session:
            if stage is not current:
                current, means, began, first = stage, {}, time.monotonic(), step.i - 1
                task = progress.add_task(stage.name, total=stage.steps, completed=first, metrics="")
            tracked.step(stage, step)
            for name, value in step.losses.items():
                means[name] = value if name not in means else 0.98 * means[name] + 0.02 * value
            skipped += len(step.skipped)
            rate = (step.i - first) / max(time.monotonic() - began, 1e-9)
            line = _line(means, rate, skipped)
            assert task is not None
            progress.update(task, completed=step.i, metrics=line)
            report()
            if not console.is_terminal and _is_tenth(stage, step):
                left = (stage.steps - step.i) / rate
                say(f"{stage.name} {step.i}/{stage.steps}, {left:.0f} s left, {line}")


def _line(means: dict[str, float], rate: float, skipped: int) -> str:
    losses = "  ".join(f"{name} {value:.4g}" for name, value in means.items())
    return f"{rate:.1f} it/s  {losses}" + (f"  skipped {skipped}" if skipped else "")


def _is_tenth(stage: Stage, step: Step) -> bool:
    return step.i == stage.steps or step.i % max(1, stage.steps // 10) == 0


def _print_figures(figures: dict[str, float]) -> None:
    if not figures:
        say("this problem has no figures of its own; limbeck verify measures what the system claims.")
        return
    sides, rows = beside(figures)
    table = Table("", "student", *sides, box=None)
    for name, values in rows.items():
        table.add_row(name.replace("_", " "), *("" if v is None else number(v) for v in values))
    console.print(table)


def verify(names: Sequence[str], seeds: Sequence[int] | None, record: bool, as_json: bool) -> int:
    """Measures claims; exit code 1 if any fails."""
    results = []
    err = Console(stderr=True, highlight=False)
    for name in names:
        results.append(result := _measure(name, seeds, err))
        if not as_json:
            mark = "passed" if result["passed"] else "FAILED"
            spread = f" ± {result['spread']:.2g}"
            say(f"{name}: {result['figure']:.4g}{spread} (≤ {result['bound']:g}), {mark}, {result['seconds']:.0f} s")
        if record:
            _record(name, result)
    if as_json:
        keys = ("id", "figure", "bound", "passed", "seconds")
        print(to_json([{key: result[key] for key in keys} for result in results]))
    return 0 if all(result["passed"] for result in results) else 1


def _measure(name: str, seeds: Sequence[int] | None, err: Console) -> dict[str, Any]:
    problem = loading.default_problem(name)
    torch.set_num_threads(problem.threads or torch.get_num_threads())
    recipe = loading.load_recipe(name, problem)
    figures, began = {}, time.monotonic()
    for seed in seeds or range(101, 101 + recipe.claim.seeds):
        try:
            figures[seed] = recipe.claim.check(run_recipe(recipe, problem, seed=seed))
        except Diverged:
            figures[seed] = float("inf")
        err.print(f"{name}, seed {seed}: {figures[seed]:.4g} after {time.monotonic() - began:.0f} s")
    values = list(figures.values())
    return {
        "id": name,
        "figure": statistics.fmean(values),
        "bound": recipe.claim.bound,
        "passed": recipe.claim.holds(values),
        "spread": statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else 0.0,
        "seconds": time.monotonic() - began,
        "claim": recipe.claim.text,
        "problem": problem.name,
        "seeds": {str(seed): value for seed, value in figures.items()},
        "sources": (sources := loading.sources_of(name, recipe)),
        "digest": catalogue.digest(sources),
    }


def _record(name: str, result: dict[str, Any]) -> None:
    where = {
        "commit": _commit(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }
    catalogue.EVIDENCE.mkdir(exist_ok=True)
    (catalogue.EVIDENCE / f"{name}.json").write_text(to_json({**result, **where}) + "\n")


def _commit() -> str:
    command = ["git", "-C", str(catalogue.PACKAGE), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def sample(folder: Path, out: Path | None, n: int, seed: int) -> int:
    """Writes samples of a run."""
    if n < 1:
        raise BadSetting(f"n must be at least 1, got {n}.")
    out = out or folder / "samples" / "samples.png"
    if out.suffix not in (".png", ".safetensors"):
        raise BadSetting(f"--out must end in .png or .safetensors, got {out}.")
    session = loading.load_run(folder)
    problem = session.problem
    if not isinstance(problem, Generative):
        raise BadSetting(f"{problem.name} has no samples to draw.")
    noise, cond, rng = comparison.fresh(problem, n, seed)
    draw = comparison.student_of(session.student)(noise, cond, rng)
    with writing(out, BadFile):
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".png":
            picture(problem, {"student": draw}, out)
        else:
            save_file(flatten({"x": draw.x, "cond": draw.cond})[0], out)
    say(f"{len(draw.x)} samples: {out}")
    return 0


def evaluate(folder: Path, n: int, seed: int, as_json: bool) -> int:
    """Prints a run's figures beside its teacher's."""
    if n < 10:
        raise BadSetting(f"n must be at least 10, got {n}.")
    session = loading.load_run(folder)
    torch.set_num_threads(session.problem.threads or torch.get_num_threads())
    figures = figures_of(session.student, session.problem, n=n, seed=seed)
    print(to_json(figures)) if as_json else _print_figures(figures)
    return 0
