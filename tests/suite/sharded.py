"""One of two ranks whose networks are sharded by FSDP. ``python -m tests.suite.sharded FOLDER RANK``."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.func import functional_call

from limbeck import (
    DMD,
    EMA,
    GAN,
    KD,
    Adam,
    ConfidenceWeighted,
    Critic,
    Dataset,
    Fake,
    FitNets,
    OneStep,
    Run,
    SiD,
    distill,
)
from limbeck.diffusion.denoiser import Denoiser
from limbeck.engine.shards import is_shard, part_of
from limbeck.errors import Incompatible
from limbeck.objectives import R1
from limbeck.problems.networks import MLP, ResidualMLP
from limbeck.recipes.k_self._past import PastVotes
from limbeck.rng import Rng, seeded
from limbeck.students import Phased
from limbeck.teachers import Trained, low_rank

WORLD = 2
TICKS = 50


def whole(x: Tensor) -> Tensor:
    """A tensor that may lie in shards, as one."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x  # type: ignore[operator]


def classified(*, own: bool = False, steps: int = TICKS, dtype: torch.dtype = torch.float64, **settings: object) -> Run:
    """KD with a hint and weighted labels, whose student is tapped; ``own``: the user has sharded it."""
    with seeded("networks"):
        student, teacher = (MLP(size=4, classes=3, widths=(8, width)).to(dtype) for width in (8, 12))
    if own:
        mesh = init_device_mesh("cpu", (WORLD,))
        for block in (*student.blocks, student):
            fully_shard(block, mesh=mesh)
    data = Dataset(x=Rng(1).normal(32, 4).to(dtype), y=Rng(2).integers(32, 3))
    settings = {"objective": KD() + FitNets(pairs={"blocks.1": "blocks.1"}) + ConfidenceWeighted(), **settings}
    settings = {"batch": 8, "optim": Adam(lr=1e-2, clip=0.1), "ema": None if own else EMA(decay=0.9), **settings}
    return distill(teacher, student, data=data, steps=steps, **settings)  # type: ignore[arg-type]


def generated(
    objective: object,
    *,
    blocks: int = 2,
    rank: int | None = None,
    wrap: Callable[[Denoiser], Denoiser] = lambda one: one,
    dtype: torch.dtype = torch.float64,
    **settings: object,
) -> Run:
    """A one-step generator, its critic, and what else the objective has."""
    with seeded("denoisers"):
        teacher = Trained(ResidualMLP(shape=(3,), width=16, blocks=blocks)).to(dtype)
        nn.init.normal_(teacher.net.out.weight, std=0.1)  # type: ignore[union-attr, arg-type]
        teacher.requires_grad_(False)
        denoiser = low_rank(teacher, rank) if rank else teacher.clone(trainable=True)
    student = OneStep(wrap(denoiser), shape=(3,), ratio=2.0)
    data, optim = Rng(1).normal(32, 3).to(dtype), Adam(lr=1e-3, clip=0.5)
    settings = {"steps": TICKS, "batch": 8, "optim": optim, "ema": EMA(decay=0.9), **settings}
    return distill(teacher, student, objective, data, **settings)  # type: ignore[arg-type]


def dmd2(**settings: object) -> Run:
    """DMD2: a critic, and a discriminator that looks through it."""
    critic = Critic()
    dmd = DMD(fake=Fake(critic=critic), critic_steps=2) + 0.3 * GAN(critic=critic, critic_steps=2)
    return generated(dmd, blocks=1, **settings)


def sid(**settings: object) -> Run:
    """SiD: gradients through teacher and critic."""
    return generated(SiD(), **{"steps": 10, **settings})


def adapters(**settings: object) -> Run:
    """A student and a critic that are adapters on the teacher's own weights."""
    critic = Critic(rank=2)
    dmd = DMD(fake=Fake(critic=critic), critic_steps=2) + 0.3 * GAN(critic=critic, critic_steps=2)
    return generated(dmd, rank=2, **{"steps": 10, **settings})


def hints(**settings: object) -> Run:
    """Backward passes that begin inside a part of the student, and end before its output."""
    return classified(objective=FitNets(pairs={"blocks.1.0": "blocks.1.0"}), **{"steps": 10, **settings})


RUNS = {"classified": classified, "hints": hints, "dmd2": dmd2, "sid": sid, "adapters": adapters}
JOBS = (("classified", 2), ("hints", 1), ("dmd2", 1), ("sid", 1), ("adapters", 1))
"""Runs that are sharded, and in how many micro-batches."""


def numbers(run: Run) -> dict[str, Tensor]:
    """Losses and norms of every tick, and what all roles and averages end with."""
    steps = [torch.tensor([*step.losses.values(), *step.norms.values()], dtype=torch.float64) for step in run]
    last = {f"step {k}": step for k, step in enumerate(steps)}
    modules = {name: role.module for name, role in run.cast.roles.items()}
    modules |= {name: target.module for name, target in run.cast.targets.items()}
    params = {f"{who} {n}": p for who, module in modules.items() for n, p in module.named_parameters()}
    return last | {name: whole(p.detach()).clone() for name, p in params.items()}


def share(run: Run) -> dict[str, float]:
    """Which part this process holds of all weights, of all moments, and of all averages."""
    cast = run.cast
    modules = (*cast.teachers.values(), *(role.module for role in cast.roles.values()))
    every = {
        "weights": [p.detach() for module in modules for p in module.parameters()],
        "moments": [x for r in cast.roles.values() for p in r.params.values() for x in r.optimizer.state[p].values()],
        "averages": [p.detach() for target in cast.targets.values() for p in target.params.values()],
    }
    return {
        name: sum(part_of(x).numel() for x in found if x.dim()) / sum(x.numel() for x in found if x.dim())
        for name, found in every.items()
    }


def twice(**settings: object) -> Run:
    """A penalty on the slope of a network."""
    return generated(GAN(on="own", penalty=R1()), **settings)


def past(**settings: object) -> Run:
    """Copies of the student that are made while it learns."""
    return classified(objective=PastVotes(every=1), **settings)


def called_by_others(**settings: object) -> Run:
    """A pass of the student by parameters that are not its own."""
    run = classified(**settings)
    params = {name: p.detach() for name, p in run.cast.student.named_parameters()}
    functional_call(run.cast.student, params, (torch.zeros(1, 4, dtype=torch.float64),))
    return run


def experts(**settings: object) -> Run:
    """A student of two networks, each for some of the rows."""
    return generated(DMD(), wrap=lambda one: Phased([one, one.clone(trainable=True)], ratios=(3.0, 1.0)), **settings)


REFUSED: dict[str, Callable[..., Run]] = {
    "differentiate a network once": twice,
    "parts are called": past,
    "called with their own parameters": called_by_others,
    "a denoiser of one network": experts,
}
"""By what is said then."""


def refused(make: Callable[..., Run]) -> str:
    """What is said of a run that cannot be sharded."""
    try:
        for _ in make(shard=True, steps=3):
            pass
    except Incompatible as error:
        return str(error)
    return "nothing"


def main(folder: Path, rank: int) -> None:
    """Writes what this rank ends with."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    for accumulate in (1, 2):
        save_file(numbers(classified(own=True, steps=4, accumulate=accumulate)), folder / f"{rank}-own-{accumulate}")
    told: dict[str, object] = {said: refused(make) for said, make in REFUSED.items()}
    for name, accumulate in JOBS:
        run = RUNS[name](shard=True, accumulate=accumulate)
        save_file(numbers(run), folder / f"{rank}-{name}-{accumulate}")
        save_file(dict(run.whole().state_dict()), folder / f"{rank}-{name}-{accumulate}-whole")
        told[name] = share(run)
        if name == "adapters":
            networks = (run.cast.teacher, run.cast.student, run.cast.module("critic"))
            base, *others = ({id(p) for p in net.parameters() if is_shard(p)} for net in networks)
            told["one base"] = all(base == other for other in others)
    (folder / f"{rank}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
