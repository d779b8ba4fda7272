"""Timings side by side: two pieces of work in turn, compared pair by pair, on one thread."""

import gc
import statistics
import time
import weakref
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
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


def peak(work: Callable[[], object]) -> int:
    """The most bytes that tensors held at one moment of the work, those that were there before it included.

    Counted from the storages that live, so that neither an allocator's habits nor other processes disturb it.
    """
    tracker = _Held()
    with tracker:
        work()
    return tracker.most


class _Held(TorchDispatchMode):
    """Counts the bytes of storages from their first appearance until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()
        gc.collect()
        for item in gc.get_objects():
            if isinstance(item, torch.Tensor):
                self._see(item)

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._see, out)
        return out
