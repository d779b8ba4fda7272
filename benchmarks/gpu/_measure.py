"""Seconds, memory and utilisation of a run's ticks on the device that it is on."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from limbeck.engine.loop import Run
from limbeck.evaluate.memory import peak
from limbeck.evaluate.needs import Needs, needs

CARDS = {  # dense operations of bf16 with sums in fp32, in 10¹² a second, by NVIDIA's data sheets
    "B200": 2250,
    "H200": 989,
    "GH200": 989,
    "H100 NVL": 835,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "A30": 165,
    "A10": 125,
    "L40S": 362,
    "L4": 121,
    "RTX 6000 Ada": 364,
    "RTX 4090": 165,
    "RTX 3090": 71,
}
"""The first name that is in a card's own counts."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What ticks took.

    Args:
        card: the device.
        ticks: so many were timed.
        seconds: of a tick, on average.
        memory: bytes at the worst moment.
        planned: the same by `limbeck plan`.
        operations: of a tick on average, without what checkpointing makes again.
        utilisation: operations in a second over what the card does at its best; None for an unknown card.
    """

    card: str
    ticks: int
    seconds: float
    memory: int
    planned: int
    operations: float
    utilisation: float | None


def measure(
    run: Run, cycle: int, budget: float, checkpoint: Callable[[bool], None], peak_tflops: float | None
) -> Measured:
    """Ticks of a run, in whole cycles until the budget is spent, after one that does not count.

    Args:
        run: ready, on its device.
        cycle: ticks after which the same losses are due again.
        budget: seconds.
        checkpoint: switches gradient checkpointing.
        peak_tflops: of the device; by its name if None.
    """
    plan, operations = planned(run, checkpoint)
    cuda = run.device.type == "cuda"
    card = torch.cuda.get_device_name(run.device) if cuda else "processor"
    ticks(run, cycle)
    if cuda:
        torch.cuda.reset_peak_memory_stats(run.device)
    began, done = time.perf_counter(), 0
    memory = 0
    while done == 0 or time.perf_counter() - began < budget:
        if cuda:
            ticks(run, cycle)
        else:
            memory = max(memory, peak(lambda: ticks(run, cycle)))
        done += cycle
    took = (time.perf_counter() - began) / done
    memory = torch.cuda.max_memory_allocated(run.device) if cuda else memory
    best = peak_tflops or next((value for name, value in CARDS.items() if name in card), None)
    return Measured(
        card=card,
        ticks=done,
        seconds=took,
        memory=memory,
        planned=plan.total,
        operations=operations,
        utilisation=None if best is None else operations / took / (1e12 * best),
    )


def planned(run: Run, checkpoint: Callable[[bool], None]) -> tuple[Needs, float]:
    """What a run needs as it runs, and its operations without those that checkpointing makes again."""
    checkpoint(False)
    operations = needs(run).operations
    checkpoint(True)
    return needs(run), operations


def ticks(run: Run, n: int) -> None:
    """So many ticks, and all that was asked of the device is done."""
    for _ in range(n):
        run.i %= run.steps
        run.tick()
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)


def lines(found: Measured) -> list[str]:
    """What to print."""
    used = "unknown card: --tflops" if found.utilisation is None else f"{100 * found.utilisation:.1f} %"
    return [
        f"card                       {found.card}",
        f"seconds per iteration      {found.seconds:.3f}  ({found.ticks} ticks)",
        f"peak memory                {found.memory / 2**30:.2f} GiB  (planned {found.planned / 2**30:.2f} GiB)",
        f"operations per iteration   {found.operations / 1e12:.2f} TFLOP",
        f"model FLOP utilisation     {used}",
    ]


def record(found: Measured) -> dict[str, object]:
    """The same as an object."""
    return asdict(found)
