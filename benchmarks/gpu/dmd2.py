"""DMD2 on networks of real size with random weights: seconds per iteration, peak memory, model FLOP utilisation.

Teacher, student and critic are one frozen base in bf16 with low-rank adapters for the two that learn, under gradient
checkpointing. As published (arXiv 2405.14867) the critic learns in every tick and the student in every fifth, the
teacher is guided, and a discriminator reads the middle of the critic's U-Net; the transformer, whose features are no
maps, has none. Nothing is downloaded.

    python benchmarks/gpu/dmd2.py sd15|sdxl|dit2b

``--plan`` needs no device: it prints what memory and operations would be needed. ``--tiny`` runs the same code with a
small network on the processor.
"""

import argparse
import json
import sys
from collections.abc import Callable
from datetime import date
from functools import partial

import torch
from _measure import lines, measure, planned, record
from _models import MODELS, Model, placed, tiny

from limbeck import CFG, DMD, GAN, Adam, Critic, Dataset, Fake, Objective, OneStep, Run, distill, low_rank
from limbeck.bridges import Diffusers, steps_of
from limbeck.diffusion import Karras, Tabulated, Times, Uniform
from limbeck.rng import seeded

CYCLE, RANK, ROWS, SECONDS = 5, 64, 64, 120.0
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""Layers of attention, which have the adapters."""


def start(model: Model, device: str, batch: int, rank: int, make: Callable[..., Objective] | None = None) -> Run:
    """The run; ``make`` makes its objective of noise levels and a critic, DMD2's by default."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    teacher = model.build(device, dtype)
    checkpointing(teacher, on=True)
    place = "cpu" if device == "meta" else device
    teacher.null = placed(teacher.null, place, dtype)
    table = isinstance(teacher.process, Tabulated)
    times = Karras(sigma_min=0.02, sigma_max=14.0) if table else Uniform(lo=0.02, hi=0.98)
    critic = Critic(times=times, rank=rank or None, targets=TARGETS if rank else ("*",))
    objective = (make or partial(dmd2, gan=bool(model.taps)))(times, critic)
    with seeded("data"):
        x = torch.randn(ROWS, *model.shape)
    data = Dataset(x=x.to(place, dtype), cond=placed(model.conditions(ROWS), place, dtype))
    (ratio,) = steps_of(teacher.clock, 1) if table else (80.0,)
    network = low_rank(teacher, rank, TARGETS) if rank else teacher.clone(trainable=True)
    student = OneStep(network, shape=model.shape, ratio=ratio)
    cast = None if dtype is torch.float32 else dtype
    return distill(
        teacher, student, objective, data, steps=1000 * CYCLE, batch=batch, optim=Adam(lr=1e-5), autocast=cast
    )


def dmd2(times: Times, critic: Critic, *, gan: bool = True) -> Objective:
    """DMD2, or without its GAN."""
    objective = DMD(fake=Fake(critic=critic), times=times, guidance=CFG(scale=7.5), critic_steps=CYCLE)
    if not gan:
        return objective
    return objective + 3e-3 * GAN(critic=critic, times=times, critic_steps=CYCLE, feature_weight=1e-2)


def checkpointing(*networks: torch.nn.Module, on: bool) -> None:
    """Switches gradient checkpointing in networks of diffusers."""
    for network in networks:
        for part in network.modules():
            if isinstance(part, Diffusers):
                part.net.enable_gradient_checkpointing() if on else part.net.disable_gradient_checkpointing()


def main(argv: list[str]) -> dict[str, object]:
    """Measures, prints, and returns what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--batch", type=int, help="rows of a tick")
    parser.add_argument("--rank", type=int, default=RANK, help="of adapters; 0 for three full networks")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of measuring")
    parser.add_argument("--tflops", type=float, help="what the card does at its best, in 10¹² operations a second")
    parser.add_argument("--tiny", action="store_true", help="a small network on the processor")
    parser.add_argument("--plan", action="store_true", help="no device: what would be needed")
    args = parser.parse_args(argv)
    if not (args.tiny or args.plan or torch.cuda.is_available()):
        parser.error("there is no CUDA device; --plan says what would be needed, --tiny runs on the processor")
    model = tiny(args.model) if args.tiny else MODELS[args.model]
    device = "meta" if args.plan else "cpu" if args.tiny else "cuda"
    run = start(model, device, args.batch or model.batch, min(args.rank, 2) if args.tiny else args.rank)
    switch = partial(_switch, run)
    size = sum(p.numel() for p in run.cast.teacher.parameters())
    print(f"{args.model}: {size / 1e6:,.1f} M parameters, rank {args.rank}, batch {run.batch}, {date.today()}")
    if args.plan:
        found, operations = planned(run, switch)
        print(f"memory {found.total / 2**30:.2f} GiB, operations per iteration {operations / 1e12:.2f} TFLOP")
        return {"planned": found.total, "operations": operations, "parameters": size}
    measured = measure(run, CYCLE, args.seconds, switch, args.tflops)
    print("\n".join(lines(measured)))
    print(json.dumps(record(measured)))
    return {**record(measured), "parameters": size}


def _switch(run: Run, on: bool) -> None:
    checkpointing(*run.cast.teachers.values(), *(role.module for role in run.cast.roles.values()), on=on)


if __name__ == "__main__":
    main(sys.argv[1:])
