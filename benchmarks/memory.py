"""What a tick of DMD2 holds when teacher, student and critic share one base, beside fine-tuning one network by LoRA.

A random UNet2DConditionModel of over 100 M parameters; adapters on its attention. Each run is a process of its own, in
which two ticks are made, and the second one is measured, when optimisers have their moments:

- tensors: the most bytes that tensors held at one moment of it, what was there before included;
- process: the most memory that the process ever had, with all that torch and diffusers take for themselves.

Beside each other are fine-tuning of one network by the denoising loss, with PEFT and with our adapters; DMD, and DMD2
with its GAN on the critic's features, on one base; and the same with three whole networks. Every tick updates all who
learn. The ratio is to the better of the two fine-tunings, of tensors.

The GAN's gradient goes through the critic to the samples, so that DMD2 would hold the activations of two networks at
once, where fine-tuning holds those of one. On one base the student's samples are therefore made again when the gradient
has come and the critic's activations are gone, for one pass more; "once" is without that, as three networks are. With
all frozen matrices in the host's memory ("offloaded"), these are not counted, and what is brought from there is. Beside
it, all blocks are computed again (checkpointed).

    python benchmarks/memory.py [--precision fp32 bf16] [--batch 4] [--size 16]
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable

import torch
from _paired import seconds
from torch import Tensor

from limbeck import DMD, GAN, Adam, Critic, Drawn, Fake, OneStep, checkpointed, distill, low_rank
from limbeck.bridges import Clock, Diffusers
from limbeck.diffusion import Karras, RectifiedFlow
from limbeck.engine import Memory
from limbeck.evaluate.memory import peak
from limbeck.rng import Rng, seeded

RANK, TARGETS, TARGET = 16, ("to_q", "to_k", "to_v", "to_out.0"), 1.2
SHARED = ("dmd shared", "dmd2 shared", "dmd2 shared, once", "dmd2 shared, offloaded")
RUNS = ("peft", "plain", *SHARED, "dmd three", "dmd2 three")
TIMES = Karras(lo=0.02, hi=0.98)


def network(dtype: torch.dtype, size: int) -> Diffusers:
    """A teacher that knows nothing, of the width of small models of text to images."""
    import diffusers

    blocks = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
    with seeded("memory"):
        net = diffusers.UNet2DConditionModel(
            sample_size=size,
            block_out_channels=(192, 384, 576),
            down_block_types=blocks,
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=512,
            attention_head_dim=8,
        )
    teacher = Diffusers(
        net.to(dtype), Clock(RectifiedFlow(), "flow", scale=1000.0), taps={"mid_block": 576}
    ).requires_grad_(False)
    return teacher


def batch(n: int, rng: Rng, size: int) -> dict[str, object]:
    """Latents and texts."""
    text = {"encoder_hidden_states": rng.normal(n, 32, 512, dtype=torch.float32)}
    return {"x": rng.normal(n, 4, size, size, dtype=torch.float32), "cond": text}


def distilled(what: str, teacher: Diffusers, n: int, size: int) -> Callable[[], object]:
    """A tick of DMD, or of DMD2 with its GAN, on one base or with three whole networks."""
    rank, targets = (RANK, TARGETS) if "shared" in what else (None, ("*",))
    net = teacher.clone(trainable=True) if rank is None else low_rank(teacher, rank, targets)
    critic = Critic(rank=rank, targets=targets, times=TIMES)  # as in the recipe: losses share their passes
    objective = DMD(fake=Fake(critic=critic), times=TIMES)
    if what.startswith("dmd2"):
        objective = objective + 1e-3 * GAN(critic=critic, times=TIMES, feature_weight=1e-2)
    data = Drawn(lambda n, rng: batch(n, rng, size), fields=("x", "cond"))
    student = OneStep(net, shape=(4, size, size), ratio=20.0)
    memory = None
    if what.endswith("once"):
        memory = Memory(again=())
    if what.endswith("offloaded"):
        memory = Memory(offload=True)
    return distill(teacher, student, objective, data, steps=100, batch=n, optim=Adam(lr=1e-5), memory=memory).tick


def tuned(what: str, teacher: Diffusers, n: int, size: int) -> Callable[[], object]:
    """A step of fine-tuning by the denoising loss, written plainly."""
    if what == "peft":
        from peft import LoraConfig

        net = teacher
        net.net.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(TARGETS)))
    else:
        net = low_rank(teacher, RANK, TARGETS)
    net.train()
    optim = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-5, fused=True)
    process = teacher.process

    def step() -> None:
        made, t = batch(n, Rng("data"), size), torch.full((n,), 0.5, dtype=torch.float64)
        x = made["x"]
        assert isinstance(x, Tensor)
        x_t = process.add_noise(x, torch.randn_like(x), t)
        ((net.denoise(x_t, t, made["cond"]) - x) ** 2).mean().backward()
        optim.step()
        optim.zero_grad()

    return step


def measure(what: str, precision: str, again: bool, n: int, size: int) -> dict[str, float]:
    """One run, in this process: MiB of tensors and of the process."""
    torch.set_num_threads(1)
    teacher = network({"fp32": torch.float32, "bf16": torch.bfloat16}[precision], size)
    if again:
        checkpointed(teacher)
    tick = (tuned if what in ("peft", "plain") else distilled)(what, teacher, n, size)
    tick()
    took = seconds(tick)
    tensors = peak(tick)
    process = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "parameters": sum(p.numel() for p in teacher.parameters()),
        "tensors": tensors,
        "process": process,
        "seconds": took,
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--runs", nargs="+", default=RUNS, choices=RUNS)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=16, help="of latents")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*json.loads(args.one), args.batch, args.size)))
        return
    print(f"{'':46}{'tensors':>12}{'process':>12}{'ratio':>8}{'a tick':>10}")
    for precision in args.precision:
        for again in (False, True):
            rows = {what: fresh(what, precision, again, args) for what in args.runs}
            best = min(rows[what]["tensors"] for what in rows if what in ("peft", "plain"))
            for what, row in rows.items():
                name = f"{precision}{', checkpointed' if again else ''}, {what}"
                ratio = row["tensors"] / best
                mark = "  too much" if what.endswith("shared") and ratio > TARGET else ""
                sizes = "".join(f"{row[key] / 2**20:8.0f} MiB" for key in ("tensors", "process"))
                print(f"{name:46}{sizes}{ratio:8.2f}{row['seconds']:8.1f} s{mark}", flush=True)


def fresh(what: str, precision: str, again: bool, args: argparse.Namespace) -> dict[str, float]:
    """One run in a new process."""
    told = ["--one", json.dumps([what, precision, again]), "--batch", str(args.batch), "--size", str(args.size)]
    done = subprocess.run([sys.executable, __file__, *told], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
