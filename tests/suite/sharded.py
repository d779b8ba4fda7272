"""One of two ranks whose student is sharded by FSDP. ``python -m tests.suite.sharded FOLDER RANK``."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from limbeck import KD, Adam, Dataset, FitNets, distill
from limbeck.problems.networks import MLP
from limbeck.rng import Rng, seeded

WORLD = 2


def whole(x: Tensor) -> Tensor:
    """A tensor that may lie in shards, as one."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x  # type: ignore[operator]


def record(*, shard: bool, accumulate: int) -> dict[str, Tensor]:
    """Parameters, losses and norms after a few ticks of KD with a hint, whose student is tapped."""
    with seeded("networks"):
        student, teacher = (MLP(size=4, classes=3, widths=(8, width)).double() for width in (8, 12))
    if shard:
        mesh = init_device_mesh("cpu", (WORLD,))
        for block in (*student.blocks, student):
            fully_shard(block, mesh=mesh)
    data = Dataset(x=Rng(1).normal(32, 4).double(), y=Rng(2).integers(32, 3))
    objective, optim = KD() + FitNets(pairs={"blocks.1": "blocks.1"}), Adam(lr=1e-2, clip=0.1)
    run = distill(teacher, student, objective, data, steps=4, batch=8, optim=optim, accumulate=accumulate)
    steps = [torch.tensor([*step.losses.values(), *step.norms.values()]) for step in run]
    learned: nn.Module = run.cast.student
    return {"steps": torch.stack(steps), **{n: whole(p).detach().clone() for n, p in learned.named_parameters()}}


def main(folder: Path, rank: int) -> None:
    """Writes what this rank ends with."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    for accumulate in (1, 2):
        save_file(record(shard=True, accumulate=accumulate), folder / f"{rank}-{accumulate}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
