"""What a system needs before anything is bought: memory, exchange, operations and time of each of its processes.

Ticks of the real loop are run without values, see `limbeck.evaluate.hollow`, so what is planned is what runs.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.distributed as dist

from limbeck.engine.loop import Run
from limbeck.engine.ranks import several
from limbeck.engine.recipe import Prior, Problem, Recipe, Stage
from limbeck.errors import BadSetting, Incompatible, LimbeckError, in_range
from limbeck.evaluate.needs import Needs, needs, seconds


def plan(
    recipe: Recipe, problem: Problem, *, processes: int = 1, tflops: float | None = None, gbps: float | None = None
) -> tuple[list[Needs], list[str]]:
    """What each process needs in each stage that can be planned; and, in a sentence each, which cannot and why.

    Args:
        recipe: what would run.
        problem: on what; its networks may be without weights, on the meta device.
        processes: so many run it together.
        tflops: operations in a second that a device does, in 10¹²; None measures ticks here where there are weights.
        gbps: 10⁹ bits in a second from one process to another; None leaves the exchange out of the time.

    Raises:
        BadSetting, Incompatible: what would stop the run before step 0.
    """
    with _one_of(processes):
        prior, found, said = Prior(Path("stages")), list[Needs](), list[str]()
        for stage in recipe.stages:
            if not isinstance(stage, Stage):
                said.append(f"stage {stage.name} makes files and is not planned.")
                continue
            try:
                run = replace(stage, shard=False).start(problem, prior, 0)
            except Exception as error:  # whatever a stage does that looks for what an earlier one made
                text = " ".join(str(error).split()).rstrip(".")
                if isinstance(error, LimbeckError) and not said:
                    raise
                if not said:
                    what = f"stage {stage.name} cannot be set up: {type(error).__name__}: {text}."
                    raise BadSetting(what) from error
                said.append(f"stage {stage.name} is not planned: {type(error).__name__}: {text}.")
                continue
            prior.students[stage.name] = run.student
            found.append(_timed(_planned(stage, problem, prior, run), run, tflops, gbps))
        if not found:
            raise Incompatible("a plan", need="a stage that does without files of earlier ones", got=" ".join(said))
        return found, said


def _planned(stage: Stage, problem: Problem, prior: Prior, run: Run) -> Needs:
    shards = stage.shard and several()
    try:
        return needs(stage.start(problem, prior, 0) if shards else run, stage.name)
    except Exception as error:  # a loss may branch on values, and torch has many words for that
        if isinstance(error, LimbeckError) and shards:
            raise
        if _bare(run) or shards:  # which hold no values where the other processes are not there
            what = "a plan of shards" if shards else "a plan without weights"
            got = f"stage {stage.name}, which asks for values: {type(error).__name__}"
            raise Incompatible(what, need="ticks that shapes alone decide", got=got) from error
    return needs(stage.start(problem, prior, 0), stage.name, values=True)


def _timed(found: Needs, run: Run, tflops: float | None, gbps: float | None) -> Needs:
    if tflops is not None:
        took = found.operations / (1e12 * tflops)
    elif _bare(run):
        return found
    else:
        took = seconds(run)
    return replace(found, seconds=took + (8e-9 * found.exchanged / gbps if gbps else 0.0))


def _bare(run: Run) -> bool:
    """Whether it has networks without weights."""
    return any(x.is_meta for x in run.cast.tensors())


@contextmanager
def _one_of(n: int) -> Generator[None]:
    """Inside, this process is the first of n, and the others answer at once and say nothing."""
    in_range("gpus", n, 1)
    if n == 1:
        yield
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=n)
    try:
        yield
    finally:
        dist.destroy_process_group()


# The command


def command(
    system: str,
    on: str,
    values: Mapping[str, str],
    gpus: int,
    tflops: float | None,
    gbps: float | None,
    as_json: bool,
    given: Mapping[str, str] | None = None,
) -> int:
    """Prints what a system needs on a problem."""
    from limbeck import loading
    from limbeck.commands import say, to_json

    for name, value in (("tflops", tflops), ("gbps", gbps)):
        in_range(name, 1.0 if value is None else value, 1e-9)
    problem = loading.load_problem(on, given, weights=False)
    torch.set_num_threads(problem.threads or torch.get_num_threads())
    recipe = loading.load_recipe(system, problem, values)
    problem.asked_by(recipe)
    found, said = plan(recipe, problem, processes=gpus, tflops=tflops, gbps=gbps)
    if as_json:
        rows = [{**asdict(one), "still": one.still, "total": one.total} for one in found]
        print(to_json({"system": system, "problem": on, "gpus": gpus, "stages": rows, "notes": said}))
        return 0
    for one in found:
        for line in lines(one, gpus):
            say(line)
    for text in said:
        say(text)
    return 0


def lines(found: Needs, processes: int) -> list[str]:
    """A plan as lines of text."""
    each = "" if processes == 1 else f", in each of {processes} processes"
    how = "measured here, with values" if found.measured else "planned, without values"
    rows = [(f"parameters, {who}", size) for who, size in found.parameters.items()]
    rows += [("gradients", found.gradients), ("moments of optimisers", found.moments)]
    rows += [("moving averages", found.averages), ("data", found.data)]
    rows.append(("activations, and what is gathered" if found.shards else "activations", found.activations))
    each += ", in shards" if found.shards else ""
    text = [f"stage {found.stage}: {found.steps:,} ticks of {found.rows:,} rows{each}; memory is {how}"]
    rows += [("at the worst moment", found.total), ("in the host's memory", found.host)]
    text += [f"  {name:33} {amount(size, 'B'):>10}" for name, size in rows if size]
    text.append(f"  {'operations in a tick':33} {amount(found.operations, 'FLOP'):>10}")
    if processes > 1:
        text.append(f"  {'sent in a tick':33} {amount(found.exchanged, 'B'):>10}")
    if found.seconds is None:
        text.append("  time is not known: --tflops says how fast a device is, in 10¹² operations a second")
    else:
        rate = found.operations / found.seconds if found.seconds else 0.0
        text.append(f"  {'time of a tick':33} {found.seconds:8.3g} s, {amount(rate, 'FLOP/s')}")
        text.append(f"  {'time of all ticks':33} {found.seconds * found.steps / 3600:8.3g} h")
    return text


def amount(value: float, unit: str) -> str:
    """A number with a prefix.

    >>> amount(2_500_000_000, "B")
    '2.5 GB'
    """
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


__all__ = ["amount", "command", "lines", "plan"]
