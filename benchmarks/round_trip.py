"""From a pipeline of diffusers to a few-step one and back, judged by its pictures.

A small U-Net learns scikit-learn's digits by diffusers' own plain loop and is saved as a pipeline. The command line
distils and exports it; then ten lines with diffusers alone draw from each. What counts is the Fréchet distance to
digits that nobody has trained on, in the features of a small classifier of digits (`limbeck.problems.digits`), over
that of the pipeline's own 50 steps of DDIM. Students see no digits: what data they need the pipeline draws itself.

    python benchmarks/round_trip.py [--out DIR] [--seeds 3] [--only dmd2 tdm]

A folder that already holds a pipeline or a run is used again.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.evaluate.metrics import frechet
from limbeck.problems.digits import Digits, split

SLOWER: dict[str, object] = {"lr": 1e-3, "scale": "(('denoiser.*', 0.5),)"}
"""The student learns half as fast as its critic, whose parameters have other names."""

SYSTEMS: dict[str, tuple[tuple[int, ...], dict[str, object]]] = {
    "dmd2": ((1,), {"steps": 800, "batch": 64}),
    "sid-fewstep": ((1,), {"steps": 700, "batch": 64}),
    "tdm": ((4,), {"steps": 800, "batch": 64, "critic-steps": 4, "decay": 0.95, "critic.snr": 5.0} | SLOWER),
    "consistency-distillation": (
        (1, 2, 4),
        {"steps": 3000, "batch": 256, "lr": 2e-3, "sigma-max": 5.0, "student.ratios": "(5.0,)"},
    ),
}
"""In how many steps each is judged, and settings of its run."""

TARGET = 1.15
"""What one step has to reach."""

DRAWN = 10_000
"""Images of each: of 2 000, the distance of one pipeline varies by a tenth from draw to draw."""

SCRIPT = """
import sys
import torch
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained(sys.argv[1])
pipeline.set_progress_bar_config(disable=True)
noise = torch.Generator().manual_seed(int(sys.argv[4]))
n, steps = int(sys.argv[3]), int(sys.argv[2])
images = pipeline(batch_size=n, num_inference_steps=steps, generator=noise, output_type="np").images
torch.save(torch.tensor(images).movedim(3, 1), sys.argv[5])
"""
"""Diffusers alone."""


def train(folder: Path, *, steps: int = 1500, batch: int = 128, seed: int = 0) -> None:
    """A pipeline of digits, by the plain loop: ε at random timesteps, AdamW, one cycle, a moving average."""
    import diffusers
    from diffusers.training_utils import EMAModel

    torch.manual_seed(seed)
    x, _, _, _ = split()
    net = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        add_attention=False,
    )
    scheduler = diffusers.DDIMScheduler()
    optimizer = torch.optim.AdamW(net.parameters())
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    average = EMAModel(net.parameters(), decay=0.995)
    for _ in range(steps):
        clean = x[torch.randint(len(x), (batch,))]
        noise, t = torch.randn_like(clean), torch.randint(1000, (batch,))
        loss = F.mse_loss(net(scheduler.add_noise(clean, noise, t), t).sample, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        average.step(net.parameters())
    average.copy_to(net.parameters())
    diffusers.DDIMPipeline(net, scheduler).save_pretrained(folder)


def drawn(folder: Path, steps: int, *, n: int = DRAWN, seed: int = 0) -> Tensor:
    """Images of a pipeline in [−1, 1], [n, 1, 8, 8], by diffusers alone in a process of its own."""
    file = folder.with_name(f"{folder.name}-{steps}.pt")
    if not file.exists():
        _run("-c", SCRIPT, folder, steps, n, seed, file)
    return 2 * torch.load(file, weights_only=True) - 1


def distilled(system: str, pipeline: Path, out: Path, *, seed: int) -> tuple[Path, float]:
    """The folder of a student as a pipeline, and the seconds of processor time that its run took."""
    _, settings = SYSTEMS[system]
    run, exported, seconds = out / f"{system}-{seed}", out / f"{system}-{seed}-pipeline", out / f"{system}-{seed}.json"
    if not exported.exists():
        asked = [word for name, value in settings.items() for word in (f"--{name}", value)]
        where = ("--on", pipeline, "--out", run, "--seed", seed, "--resume", "--judge", 0)
        began = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        _run("-m", "limbeck", "distill", system, *where, *asked)
        _run("-m", "limbeck", "export", run, "--to", "diffusers", "--out", exported)
        seconds.write_text(json.dumps(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - began))
    return exported, json.loads(seconds.read_text())


def _run(*words: object) -> None:
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words[:4]))} failed:\n{done.stderr[-2000:]}")


def picture(rows: dict[str, Tensor], path: Path, *, n: int = 20) -> None:
    """A row of images under each name."""
    from matplotlib.figure import Figure

    figure = Figure((7.5, 0.5 * len(rows)), layout="constrained")
    for axes, (name, x) in zip(figure.subplots(len(rows)), rows.items(), strict=True):
        tiles = F.pad(x[:n, 0].clamp(-1, 1), (1, 1, 1, 1), value=-1.0)
        axes.imshow(-tiles.permute(1, 0, 2).flatten(1), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Prints the comparison and draws it."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--out", type=Path, default=Path("runs/round-trip"))
    ask.add_argument("--seeds", type=int, default=3)
    ask.add_argument("--only", nargs="*", default=[*SYSTEMS])
    asked = ask.parse_args()
    torch.set_num_threads(1)
    pipeline = asked.out / "pipeline"
    if not pipeline.exists():
        train(pipeline)
    problem, (seen, _, heldout, _) = Digits(), split()

    def far(x: Tensor) -> float:
        return frechet(problem.features(heldout), problem.features(x))

    rows = {"data": heldout[torch.arange(0, len(heldout), 24)], "50 steps": drawn(pipeline, 50)}
    whole = far(rows["50 steps"])
    print(f"Fréchet distance to {len(heldout)} held-out digits: {whole:.3f} of the pipeline's 50 steps, ", end="")
    print(f"{far(seen):.3f} of the {len(seen)} digits that it has seen")
    for steps in (1, 4):
        print(f"the pipeline itself in {steps}: {far(drawn(pipeline, steps)) / whole:.1f} × that of 50")
    print(f"{'':26}{'steps':>6}{'over 50 steps, by seed':>28}{'mean':>8}{'target':>8}{'CPU':>8}", flush=True)
    for system in asked.only:
        made = [distilled(system, pipeline, asked.out, seed=seed) for seed in range(asked.seeds)]
        seconds = sum(part for _, part in made) / len(made)
        for steps in SYSTEMS[system][0]:
            images = [drawn(folder, steps) for folder, _ in made]
            ratios, target = [far(x) / whole for x in images], f"{TARGET:.2f}" if steps == 1 else ""
            each, mean = " ".join(f"{ratio:.3f}" for ratio in ratios), sum(ratios) / len(ratios)
            print(f"{system:26}{steps:6}{each:>28}{mean:8.3f}{target:>8}{seconds:6.0f} s", flush=True)
            rows[f"{system}, {steps}"] = images[0]
    picture(rows, asked.out / "round-trip.png")
    print(f"picture: {asked.out / 'round-trip.png'}")


if __name__ == "__main__":
    main()
