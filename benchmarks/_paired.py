"""Timings side by side: two pieces of work in turn, compared pair by pair, on one thread."""

import statistics
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode


def seconds(work: Callable[[], object]) -> float:
    """Seconds of this process's own time, which do not count what other processes on the machine do."""
    began = time.process_time()
    work()
    return time.process_time() - began


def paired(ours: Callable[[], object], theirs: Callable[[], object], *, pairs: int) -> tuple[float, float, float]:
    """Medians over pairs: seconds of ours, seconds of theirs, and ours over theirs. Who goes first alternates."""
    torch.set_num_threads(1)
    ours(), theirs()
    rows = []
    for k in range(pairs):
        if k % 2:
            rows.append((seconds(ours), seconds(theirs)))
        else:
            rows.append((seconds(theirs), seconds(ours))[::-1])
    a, b, ratios = zip(*((x, y, x / y) for x, y in rows), strict=True)
    return statistics.median(a), statistics.median(b), statistics.median(ratios)


def interleaved(*works: Callable[[], object], rounds: int) -> list[tuple[float, ...]]:
    """Seconds of each work in each round, after one that does not count; who goes first alternates."""
    for work in works:
        work()
    rows = []
    for k in range(rounds):
        order = range(len(works)) if k % 2 else reversed(range(len(works)))
        took = {i: seconds(works[i]) for i in order}
        rows.append(tuple(took[i] for i in range(len(works))))
    return rows


def row(what: str, ours: float, theirs: float, ratio: float, target: float) -> str:
    """A line of a table, in milliseconds."""
    mark = "" if ratio <= target else "  too slow"
    return f"{what:34} {1e3 * ours:9.2f} ms {1e3 * theirs:9.2f} ms   × {ratio:.3f}  (≤ {target}){mark}"


def flops(work: Callable[[], object]) -> int:
    """Operations of the work's matrix products."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()
