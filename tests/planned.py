"""One of two ranks of runs that were planned. ``python -m tests.planned FOLDER RANK``."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import _functional_collectives as functional

from limbeck import Dataset
from limbeck.engine.loop import Run
from limbeck.evaluate.memory import Held, size_of
from tests.suite.sharded import adapters, classified, dmd2

WORLD = 2
"""Processes."""


RUNS: Mapping[str, Callable[..., Run]] = {"kd": classified, "dmd2": dmd2, "one base": adapters}
"""By ``shard``."""


def used(run: Run, ticks: int) -> int:
    """The most bytes that tensors hold in ticks with values, by all tensors of this process but those of others."""
    held = Held()
    rows = run.source.rows.values() if isinstance(run.source, Dataset) else ()
    beside = held.now - size_of([*run.cast.tensors(), *(x for x in rows if isinstance(x, torch.Tensor))])
    with held:
        for _ in range(ticks):
            run.tick()
    return held.most - beside


def cycle(run: Run) -> int:
    """Ticks in which every loss is due, twice."""
    return 2 * max(term.every for term in run.terms)


SHARE = {"all_reduce": 2.0, "all_gather_single": 1.0, "reduce_scatter_single": 1.0, "broadcast": 1.0}
"""How much of what it moves a process sends in a ring, over (processes − 1)/processes."""


class Sent:
    """Counts what this process hands to torch's collectives, as rings send it."""

    def __init__(self) -> None:
        self.bytes, self.calls = 0.0, dict.fromkeys(SHARE, 0)
        for name in SHARE:
            setattr(dist, name, self._counted(name, getattr(dist, name)))
        functional.all_reduce = self._counted("all_reduce", functional.all_reduce)

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **more: Any) -> Any:
            sizes = [x.numel() * x.element_size() for x in (*args, *more.values()) if isinstance(x, torch.Tensor)]
            self.bytes += SHARE[name] * (WORLD - 1) / WORLD * max(sizes)
            self.calls[name] += 1
            return call(*args, **more)

        return counted


def main(folder: Path, rank: int) -> None:
    """Writes what this rank has used and sent."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    sent, told = Sent(), {}
    for name, make in RUNS.items():
        for shard in (False, True):
            run = make(shard=shard)
            ticks, before, calls = cycle(run), sent.bytes, dict(sent.calls)
            memory = used(run, ticks)
            each = {kind: (sent.calls[kind] - n) / ticks for kind, n in calls.items()}
            told[f"{name} {shard}"] = {"peak": memory, "sent": (sent.bytes - before) / ticks, "calls": each}
            del run
    (folder / f"{rank}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
