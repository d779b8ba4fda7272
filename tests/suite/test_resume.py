"""The same bits again: in another process, under another hash seed, and from a checkpoint, also across growth."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.engine import Run
from limbeck.engine.checkpoint import read_state, write_folder
from tests.suite.cases import finished, sample, unequal
from tests.suite.worker import GROWING, Make, join, plans, start

pytestmark = pytest.mark.xdist_group("suite-resume")  # one worker of pytest makes the runs, once

PLANS = plans(sample())
CUT = (7,)
CUTS = {"growth": (3, 4, 7), "growth under a critic": (3, 4, 7, 8)}
"""Ticks at which a checkpoint is written; growth is at ticks 4 and 8."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def truth(folder: Path) -> dict[str, Any]:
    """The state at the end of every run, uninterrupted; checkpoints are left on the way."""
    names = {name: CUTS.get(name, CUT) for name in PLANS}
    places = {name: {str(cut): f"cut-{i}-{cut}" for cut in cuts} for i, (name, cuts) in enumerate(names.items())}
    (folder / "cuts.json").write_text(json.dumps(places))
    return {name: whole(PLANS[name], {int(k): folder / v for k, v in places[name].items()}) for name in PLANS}


def whole(make: Make, cuts: dict[int, Path]) -> dict[str, Any]:
    run = make()
    for step in run:
        if step.i in cuts:
            write_folder(cuts[step.i], state=run.state_dict())
    return run.state_dict()


@pytest.fixture(scope="module")
def workers(folder: Path, truth: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What two other processes, each under its own hash seed, made of the same runs."""
    started = [start(job, folder, sample(), PYTHONHASHSEED=seed) for job, seed in (("again", "1"), ("resume", "2"))]
    for worker in started:
        join(worker)
    return {job: read_state(folder / job) for job in ("again", "resume")}


@pytest.mark.parametrize("name", PLANS)
def test_resumed_in_a_new_process(truth: dict[str, Any], workers: dict[str, Any], name: str) -> None:
    resumed = workers["resume"][name]
    assert sorted(map(int, resumed)) == sorted(CUTS.get(name, CUT))
    for cut, state in resumed.items():
        assert unequal(state, truth[name]) == [], f"resumed from tick {cut}"


@pytest.mark.parametrize("name", PLANS)
def test_the_hash_seed_changes_nothing(truth: dict[str, Any], workers: dict[str, Any], name: str) -> None:
    assert unequal(workers["again"][name], truth[name]) == []


@pytest.mark.parametrize("name", PLANS)
def test_loading_restores_the_state(folder: Path, truth: dict[str, Any], name: str) -> None:
    """A checkpoint loaded and written again is the same checkpoint: nothing is left behind or made up."""
    index, cut = list(PLANS).index(name), CUTS.get(name, CUT)[0]
    state = read_state(folder / f"cut-{index}-{cut}")
    run = PLANS[name]()
    run.load_state_dict(state)
    assert unequal(run.state_dict(), state) == []


@pytest.mark.parametrize("name", CUTS)
def test_growth_happened_across_the_checkpoint(folder: Path, truth: dict[str, Any], name: str) -> None:
    index, cut = list(PLANS).index(name), CUTS[name][0]
    early = read_state(folder / f"cut-{index}-{cut}")["roles"]["student"]
    late = truth[name]["roles"]["student"]
    assert len(early["module"]["x"]) < len(late["module"]["x"])
    assert {len(late["moments"]["x"][key]) for key in ("exp_avg", "exp_avg_sq")} == {len(late["module"]["x"])}


def test_growth_takes_moments_and_averages_along() -> None:
    """Old rows keep theirs; a fresh row has no moments, and starts its average at its value."""
    run = GROWING.run()
    for _ in range(3):
        run.tick()
    before = copy.deepcopy(run.state_dict())
    run.tick()
    old, new = parts(before, run), parts(run.state_dict(), run)
    n = len(old["x"])
    assert len(new["x"]) == n * 3 // 2
    assert all(torch.equal(new[key][n:], torch.zeros_like(new[key][n:])) for key in ("exp_avg", "exp_avg_sq"))
    assert torch.equal(new["average"][n:], new["x"][n:])
    moved = lerped(old["average"], new["x"][:n], run)
    assert torch.equal(new["average"][:n], moved)
    assert not torch.equal(new["exp_avg"][:n], torch.zeros_like(old["x"]))
    assert all(len(value) == len(new["x"]) for value in new.values())


def parts(state: dict[str, Any], run: Run) -> dict[str, torch.Tensor]:
    """The student's particles, their moments and their average."""
    student = state["roles"]["student"]
    (target,) = state["targets"].values()
    moments = {key: student["moments"]["x"][key] for key in ("exp_avg", "exp_avg_sq")}
    return {"x": student["module"]["x"], "average": target["module"]["x"], **moments}


def lerped(average: torch.Tensor, x: torch.Tensor, run: Run) -> torch.Tensor:
    """One more update of a moving average."""
    (target,) = run.cast.targets.values()
    return average.lerp(x, 1 - target.ema.at(target.updates - 1))


def test_a_state_of_other_roles_is_refused() -> None:
    from limbeck.errors import Incompatible

    run, other = PLANS["a sum with a shared critic"](), GROWING.run()
    with pytest.raises(Incompatible, match="needs a state of critic, discriminator, student, got student"):
        run.load_state_dict(other.state_dict())


def test_finishing_twice_changes_nothing() -> None:
    run = GROWING.run(steps=2)
    state = copy.deepcopy(finished(run))
    assert unequal(finished(run), state) == []
