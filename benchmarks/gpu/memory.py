"""What distilling needs beside fine-tuning, on networks of real size: one base with adapters, or three networks.

Peak memory of a cycle of ticks, in which everyone learns at least once, over that of fine-tuning the same network by
the denoising loss with the same adapters, in the same loop; all under gradient checkpointing, weights random.

    python benchmarks/gpu/memory.py sdxl [sd15 dit2b]

``--plan`` needs no device: it counts the tensors of ticks without values. ``--tiny`` as in dmd2.py.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from _measure import ticks
from _models import MODELS, tiny
from dmd2 import CYCLE, RANK, dmd2, start

from limbeck import Critic, Objective, Run
from limbeck.diffusion import Denoiser, Times
from limbeck.engine.objective import Loss, Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Tick
from limbeck.evaluate.memory import peak
from limbeck.evaluate.needs import needs


@dataclass(frozen=True, kw_only=True)
class Tuning(Objective):
    """‖D(x_t, t, c) − x‖² through the student's network."""

    times: Times

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        def loss(tick: Tick) -> Loss:
            seen = tick.noised(self.times, of="data")
            network = cast.module("student").get_submodule("denoiser")
            assert isinstance(network, Denoiser)
            return Loss(((network.denoise(seen.x_t, seen.t, seen.cond) - seen.x) ** 2).flatten(1).mean(1))

        return (Term("denoising", "student", loss, of=self),)


def tuning(times: Times, _: Critic) -> Objective:
    """Fine-tuning, which has no critic."""
    return Tuning(times=times)


ROWS: dict[str, tuple[bool, Callable[..., Objective]]] = {
    "fine-tuning": (True, tuning),
    "dmd, one base": (True, partial(dmd2, gan=False)),
    "dmd2, one base": (True, dmd2),
    "dmd2, three networks": (False, dmd2),
}
"""Whether what learns are adapters, and what is learned by."""


def begun(model: str, row: str, batch: int | None, device: str, *, small: bool, rank: int = RANK) -> Run:
    """The run of a row."""
    adapters, make = ROWS[row]
    made = tiny(model) if small else MODELS[model]
    if row.startswith("dmd2") and not made.taps:
        make = partial(make, gan=False)
    return start(made, device, batch or made.batch, (min(rank, 2) if small else rank) if adapters else 0, make)


def measure(model: str, row: str, batch: int | None, rank: int, *, small: bool, planned: bool) -> int:
    """Bytes at the worst moment of a cycle, in this process."""
    run = begun(model, row, batch, "meta" if planned else "cpu" if small else "cuda", small=small, rank=rank)
    if planned:
        return needs(run).total
    ticks(run, CYCLE)
    if run.device.type == "cpu":
        return peak(lambda: ticks(run, CYCLE))
    torch.cuda.reset_peak_memory_stats(run.device)
    ticks(run, CYCLE)
    return torch.cuda.max_memory_allocated(run.device)


def fresh(argv: list[str], model: str, row: str) -> int:
    """One row in a new process."""
    told = [sys.executable, __file__, *argv, "--one", json.dumps([model, row])]
    return json.loads(subprocess.run(told, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def main(argv: list[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["sdxl"])
    parser.add_argument("--batch", type=int, help="rows of a tick")
    parser.add_argument("--rank", type=int, default=RANK, help="of adapters")
    parser.add_argument("--tiny", action="store_true", help="small networks on the processor")
    parser.add_argument("--plan", action="store_true", help="no device: what would be needed")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if unknown := [name for name in args.models if name not in MODELS]:
        parser.error(f"{unknown[0]} is none of {', '.join(MODELS)}")
    if not (args.tiny or args.plan or torch.cuda.is_available()):
        parser.error("there is no CUDA device; --plan says what would be needed, --tiny runs on the processor")
    if args.one:
        model, row = json.loads(args.one)
        print(measure(model, row, args.batch, args.rank, small=args.tiny, planned=args.plan))
        return
    for model in args.models:
        base = None
        for row in ROWS:
            found = fresh(argv, model, row)
            base = base or found
            print(f"{model:8}{row:24}{found / 2**30:10.3f} GiB{found / base:8.3f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
