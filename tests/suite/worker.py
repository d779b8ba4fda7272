"""Runs in processes of their own: built again, resumed, on two ranks. ``python -m tests.suite.worker JOB FOLDER``."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import astuple
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from limbeck.engine import SGD, Adam, RAdam, Run, Tick
from limbeck.engine.checkpoint import read_state, write_folder
from limbeck.errors import Incompatible
from limbeck.objectives import DMD, GAN, SDS, FDistill
from tests.suite.cases import EXACT, Case, finished
from tests.suite.probes import Coupled, Ragged, Watch

ROOT = Path(__file__).parents[2]
WORLD = 2

Make = Callable[..., Run]

DUO = DMD(critic_steps=2) + 0.3 * GAN(critic_steps=2)
GROWING = Case("SDS", "GrowingParticles", "Trained")


def plans(cases: Iterable[Case]) -> dict[str, Make]:
    """Runs by name: those of the cases, and some with settings that matter to a resumed run."""
    one = Case("DMD", "OneStep", "Trained")
    mixed = {"default": RAdam(lr=1e-2), "student": SGD(lr=1e-2, momentum=0.9), "critic": Adam(weight_decay=0.1)}
    return {
        **{str(case): case.run for case in cases},
        "growth": GROWING.run,
        "growth under a critic": partial(GROWING.run, DMD(critic_steps=2)),
        "a sum with a shared critic": partial(one.run, DUO),
        "ragged weights over micro-batches": partial(one.run, Ragged(), accumulate=4),
        "three optimisers": partial(one.run, DUO, optim=mixed),
    }


def rank_plans() -> dict[str, Make]:
    """Runs that two ranks must end like one process."""
    one, classifier = Case("DMD", "FewStep", "Trained", kind=EXACT), Case("KD", "Classifier", "Classifier", kind=EXACT)
    particles = Case("SDS", "GrowingParticles", "Trained", kind=EXACT)
    return {
        "DMD + GAN": partial(one.run, DUO, steps=50),
        "means over ticks": partial(one.run, FDistill(critic_steps=1)),
        "KD": partial(classifier.run, steps=50),
        "ragged weights": partial(one.run, Ragged()),
        "ragged weights over micro-batches": partial(one.run, Ragged(), accumulate=2),
        "growth": particles.run,
    }


def draws(tick: Tick) -> dict[str, torch.Tensor]:
    """Random numbers of every kind, for all rows and for this rank's."""
    return {
        "shared": tick.rng("shown", shared=True).normal(4, 2),
        "integer": torch.tensor(tick.rng("shown").integer(1000)),
        "normal": tick.rng("shown").normal(tick.size, 2),
        "uniform": tick.rng("shown").uniform(tick.size),
        "integers": tick.rng("shown").integers(tick.size, 1000),
    }


def record(make: Make) -> dict[str, object]:
    """Losses by tick, and the weights at the end."""
    run = make()
    losses = {str(step.i): {k: torch.tensor(v, dtype=torch.float64) for k, v in step.losses.items()} for step in run}
    return {"losses": losses, "weights": run.state_dict()["roles"], "average": run.student.state_dict()}


def shown() -> dict[str, torch.Tensor]:
    """What a tick of this process draws."""
    watch = Watch(objective=SDS(), note=lambda term, tick: draws(tick))
    Case("SDS", "Image", "Trained").run(watch, steps=1).finish()
    return watch.notes[0]


def refused() -> str:
    """What is said to a loss that couples its batch."""
    try:
        Case("SDS", "Particles", "Trained").run(Coupled())
    except Incompatible as refusal:
        return str(refusal)
    return "fits"


def again(folder: Path, made: dict[str, Make]) -> dict[str, object]:
    """Every run from its start."""
    return {name: finished(make()) for name, make in made.items()}


def resume(folder: Path, made: dict[str, Make]) -> dict[str, object]:
    """Every run from each of its checkpoints."""
    return {name: {cut: _from(made[name], at) for cut, at in cuts.items()} for name, cuts in read_cuts(folder).items()}


def read_cuts(folder: Path) -> dict[str, dict[str, Path]]:
    """Checkpoints by run and tick."""
    return {name: {cut: folder / at for cut, at in cuts.items()} for name, cuts in _json(folder, "cuts").items()}


def _from(make: Make, checkpoint: Path) -> dict[str, object]:
    run = make()
    run.load_state_dict(read_state(checkpoint))
    return finished(run)


def rank(folder: Path, made: dict[str, Make]) -> dict[str, object]:
    """What one rank of several sees."""
    where = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=where, rank=int(os.environ["RANK"]), world_size=WORLD)
    result = {"shown": shown(), "coupled": refused(), **{name: record(make) for name, make in rank_plans().items()}}
    dist.destroy_process_group()
    return result


JOBS = {"again": again, "resume": resume, "rank": rank}


def start(job: str, folder: Path, cases: Iterable[Case] = (), **variables: str) -> subprocess.Popen[str]:
    """A worker under way; its result will be at ``folder/JOB`` followed by what it was told in ``NAME``."""
    (folder / "cases.json").write_text(json.dumps([astuple(case)[:3] for case in cases]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-m", "tests.suite.worker", job, str(folder)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stderr=subprocess.PIPE)


def join(worker: subprocess.Popen[str], seconds: int = 100) -> None:
    """Waits for a worker, and fails with what it printed if it failed."""
    try:
        errors = worker.communicate(timeout=seconds)[1]
    finally:
        worker.kill()
    assert worker.returncode == 0, errors


def _json(folder: Path, name: str) -> object:
    return json.loads((folder / f"{name}.json").read_text())


def main(job: str, folder: Path) -> None:
    """Does one job, and writes its result."""
    torch.set_num_threads(1)
    made = plans(Case(*row) for row in _json(folder, "cases"))
    write_folder(folder / f"{job}{os.environ.get('NAME', '')}", state=JOBS[job](folder, made))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
