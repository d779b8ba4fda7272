"""What a run needs in one process: memory, what it sends to others, operations, and time where it is measured.

Memory is what tensors hold; what a process needs besides (libraries, a device's context, gaps between tensors) is not
in it.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from limbeck.engine.data import Source
from limbeck.engine.host import Hosted, host_of
from limbeck.engine.loop import Run
from limbeck.engine.shards import is_shard
from limbeck.evaluate.hollow import hollow
from limbeck.evaluate.memory import elsewhere, peak, size_of
from limbeck.evaluate.operations import Operations
from limbeck.rng import Rng

WINDOW = 1000
"""So many ticks are looked at for which losses are due in them."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What one process of a stage needs.

    Args:
        stage: its name.
        steps: ticks.
        rows: of a tick, in this process.
        parameters: bytes, with buffers, by who has them; what several share is the first one's.
        moments: bytes of optimisers.
        averages: bytes of moving averages.
        data: bytes of data sets in memory.
        gradients: bytes, at the worst moment.
        activations: bytes of all else at the worst moment.
        exchanged: bytes that this process sends in a tick, on average.
        operations: of a tick's matrix products, on average.
        seconds: of a tick, on average; None if it is not known how fast the device is.
        measured: whether its ticks were run with values, because they cannot be run without.
        shards: whether it holds a part of every network alone, and gathers what it needs.
        host: bytes of parameters that lie in the host's memory, beside all that.
    """

    stage: str
    steps: int
    rows: int
    parameters: Mapping[str, int]
    moments: int
    averages: int
    data: int
    gradients: int
    activations: int
    exchanged: float
    operations: float
    seconds: float | None = None
    measured: bool = False
    shards: bool = False
    host: int = 0

    @property
    def still(self) -> int:
        """Bytes between ticks."""
        return sum(self.parameters.values()) + self.moments + self.averages + self.data

    @property
    def total(self) -> int:
        """Bytes at the worst moment."""
        return self.still + self.gradients + self.activations


def needs(run: Run, stage: str = "", *, values: bool = False) -> Needs:
    """What a run needs in this process.

    Args:
        run: ready; its ticks are run without values and leave it as it was, but for moments of optimisers.
        stage: its name.
        values: whether to run them with values instead, and learn.
    """
    run.source.take(2, Rng((*run.seed, "example")))  # what it makes once and keeps is there before the ticks
    if values:
        return replace(_needs(run, stage, lambda: True), measured=True)
    with hollow(run) as reads:
        return _needs(run, stage, lambda: reads.drawn)


def _needs(run: Run, stage: str, drawn: Callable[[], bool]) -> Needs:
    due = cadence(run)
    for ticks in due:
        _tick(run, ticks[0])  # everyone has moments after it, and shards know their ways
    parts = _parts(run)
    fixed = [x for part in parts.values() for x in part]
    still, worst, gradients, exchanged, operations = size_of(fixed), 0, 0, 0.0, 0.0
    for i, share in _chosen(due, 3 if drawn() else 1):
        with Exchange() as sent, Operations() as counted:
            most = peak(lambda i=i: _tick(run, i), fixed)
        exchanged += share * sent.bytes
        operations += share * counted.total
        if most > worst:
            worst, gradients = most, min(most - still, _gradients(run, i))
    sizes = _sizes(parts)
    return Needs(
        stage=stage,
        steps=run.steps,
        rows=run.batch // run.world,
        parameters={who: size for who, size in sizes.items() if who not in OTHERS},
        moments=sizes["moments"],
        averages=sizes["averages"],
        data=sizes["data"],
        gradients=gradients,
        activations=worst - still - gradients,
        host=size_of({host_of(x) for part in parts.values() for x in part if isinstance(x, Hosted)}),
        exchanged=exchanged,
        operations=operations,
        shards=any(map(is_shard, fixed)),
    )


def seconds(run: Run) -> float:
    """Seconds of a tick on this machine, on average over which losses are due; the run learns."""
    due, took = cadence(run), 0.0
    for ticks in due:
        _tick(run, ticks[0])
    for i, share in _chosen(due, 3):
        began = time.perf_counter()
        _tick(run, i)
        took += share * (time.perf_counter() - began)
    return took


def cadence(run: Run) -> list[list[int]]:
    """The ticks of a run, or the first of them, by which losses are due in them."""
    ticks: dict[tuple[str, ...], list[int]] = {}
    for i in range(min(run.steps, WINDOW)):
        names = tuple(term.name for term in run.terms if term.due(i, i / run.steps))
        ticks.setdefault(names, []).append(i)
    return list(ticks.values())


def _chosen(due: Sequence[Sequence[int]], n: int) -> Iterator[tuple[int, float]]:
    """A few ticks of each kind, with how many of all ticks each of them stands for, as a share."""
    total = sum(map(len, due))
    for ticks in due:
        chosen = ticks[:n]
        yield from ((i, len(ticks) / total / len(chosen)) for i in chosen)


def _tick(run: Run, i: int) -> None:
    run.i = i
    run.tick()


def _gradients(run: Run, i: int) -> int:
    """Bytes of the gradients of a tick."""
    names = {name for term in run.terms if term.due(i, i / run.steps) for name in term.roles}
    return size_of(p for name in names for p in run.cast.roles[name].params.values())


OTHERS = ("moments", "averages", "data")


def _parts(run: Run) -> dict[str, list[Tensor]]:
    """The tensors that are there between ticks."""
    cast = run.cast
    modules = {**cast.teachers, **{name: role.module for name, role in cast.roles.items()}}
    parts = {name: [*module.parameters(), *module.buffers()] for name, module in modules.items()}
    parts["kept"] = [x for kept in cast.kept.values() for x in (_tensors(kept))]
    states = [role.optimizer.state for role in cast.roles.values()]
    parts["moments"] = [x for state in states for x in tree_leaves(dict(state)) if isinstance(x, Tensor)]
    parts["averages"] = [x for target in cast.targets.values() for x in _tensors(target.module)]
    parts["data"] = list(_rows(run.source))
    return {name: part for name, part in parts.items() if part or name in OTHERS}


def _tensors(kept: Tensor | nn.Module) -> list[Tensor]:
    return [kept] if isinstance(kept, Tensor) else [*kept.parameters(), *kept.buffers()]


def _rows(source: Source) -> Iterator[Tensor]:
    """The tensors that a source holds."""
    for leaf in tree_leaves(list(vars(source).values())):
        if isinstance(leaf, Source):
            yield from _rows(leaf)
        elif isinstance(leaf, Tensor):
            yield leaf


def _sizes(parts: Mapping[str, Sequence[Tensor]]) -> dict[str, int]:
    """Bytes of each part beyond those before it."""
    before: list[Tensor] = []
    sizes: dict[str, int] = {}
    for name, part in parts.items():
        sizes[name] = size_of([*before, *part]) - size_of(before)
        before += part
    return sizes


class Exchange(TorchDispatchMode):
    """Counts what this process sends to the others, by algorithms that send least (rings).

    Attributes:
        bytes: sent so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if elsewhere(types):
            return NotImplemented
        name = func._opname if func.namespace in ("c10d", "_c10d_functional") else ""
        out = func(*args, **(kwargs or {}))
        if name and not name.startswith(("barrier", "wait")):
            moved = max(size_of(x for x in tree_leaves(some) if isinstance(x, Tensor)) for some in (*args[:2], out))
            n = dist.get_world_size()
            self.bytes += (2 if "allreduce" in name or "all_reduce" in name else 1) * (n - 1) / n * moved
        return out


__all__ = ["Exchange", "Needs", "cadence", "needs", "seconds"]
