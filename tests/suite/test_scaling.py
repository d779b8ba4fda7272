"""Passes in float16: gradients that would underflow are found, overflows cost one update, and all of it resumes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from limbeck import (
    DMD,
    GAN,
    KD,
    SGD,
    Adam,
    ConfidenceWeighted,
    Critic,
    CrossEntropy,
    Dataset,
    Fake,
    Memory,
    Objective,
    Run,
    distill,
    loading,
)
from limbeck.engine.checkpoint import read_state, write_folder
from limbeck.engine.loop import PATIENCE
from limbeck.engine.scaling import FIRST, Scaling
from limbeck.errors import BadSetting, Diverged, Incompatible
from limbeck.rng import Rng, seeded
from tests.suite.sharded import generated

SMALL = 1e-6
"""A weight that float16 rounds gradients of a mean to zero by."""


class Net(nn.Module):
    """Layers of both kinds that float16 is for."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv1d(1, width, 3), nn.Linear(4 * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.conv(x[:, None]).relu().flatten(1))


def classified(objective: Objective | None = None, **settings: object) -> Run:
    with seeded("networks"):
        teacher, student = Net(6), Net(4)
    settings = {"data": Dataset(x=Rng(1).normal(32, 6, dtype=torch.float32), y=Rng(2).integers(32, 3)), **settings}
    settings = {"steps": 60, "batch": 16, "optim": SGD(lr=1e3), "autocast": torch.float16, **settings}
    return distill(teacher, student, objective or SMALL * KD(), **settings)  # type: ignore[arg-type], of settings


def params(run: Run) -> list[Tensor]:
    return [p.detach().clone() for role in run.cast.roles.values() for p in role.params.values()]


def learned(run: Run) -> Tensor:
    """What learning changed."""
    before = params(run)
    run.finish()
    return torch.cat([(now - old).flatten() for now, old in zip(params(run), before, strict=True)])


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("objective", [KD(), ConfidenceWeighted()])
def test_float16_learns_what_float32_learns(objective: Objective, accumulate: int) -> None:
    half = learned(classified(SMALL * objective, accumulate=accumulate))
    single = learned(classified(SMALL * objective, autocast=None))
    assert single.norm() > 0.01
    assert (half - single).norm() < 0.02 * single.norm()


def test_without_a_scale_there_is_nothing_to_learn() -> None:
    """What the test above would find."""
    run = classified()
    run.scaling = None
    norm, truth = (one.tick().norms["student"] for one in (run, classified(autocast=None)))
    assert norm < 0.5 * truth
    assert classified().tick().norms["student"] == pytest.approx(truth, rel=0.02)


def test_an_overflow_halves_the_scale_and_leaves_everything_as_it_was() -> None:
    run = classified(optim=Adam(), ema=None)
    run.scaling = planted(2.0**60)
    before = params(run)
    for k in range(2 * PATIENCE):  # more in a row than a run may diverge
        assert run.tick().skipped == ("student",)
        assert run.scaling.scale == 2.0 ** (59 - k) and run.healthy
    assert all(map(torch.equal, before, params(run)))
    assert run.skipped == 2 * PATIENCE and run.cast.roles["student"].steps == 0
    while run.tick().skipped:
        pass
    assert run.scaling.scale < 2.0**40 and not all(map(torch.equal, before, params(run)))


def test_the_scale_goes_as_that_of_torch() -> None:
    """Down by overflows, up after three good ticks, and parameters with it."""
    x, y = Rng(1).normal(1, 6, dtype=torch.float32), torch.tensor([2])
    run = classified(CrossEntropy(), optim=SGD(lr=0.1), data=Dataset(x=x, y=y))  # every batch is this row
    run.scaling = planted(2.0**24)
    run.scaling.every = 3
    with seeded("networks"):
        _, student = Net(6), Net(4)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=3)
    theirs, mine = list[float](), list[float]()
    for _ in range(40):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            out = student(x.expand(16, -1))
        scaler.scale(nn.functional.cross_entropy(out.float(), y.expand(16))).backward()
        scaler.step(optimizer)
        scaler.update()
        run.tick()
        theirs.append(scaler.get_scale())
        mine.append(run.scaling.scale)
    assert mine == theirs and len({*mine}) > 4
    for p, known in zip(params(run), student.parameters(), strict=True):
        torch.testing.assert_close(p, known.detach(), rtol=1e-4, atol=1e-6)


def planted(scale: float) -> Scaling:
    scaling = Scaling()
    scaling.scale = scale
    return scaling


def test_only_the_role_that_overflows_misses_its_update() -> None:
    critic = Critic()
    objective = DMD(fake=Fake(critic=critic), critic_steps=1) + 1e-12 * GAN(critic=critic, critic_steps=1)
    run = generated(objective, dtype=torch.float32, autocast=torch.float16, steps=5)
    run.scaling = planted(2.0**30)
    assert {"critic", "student"} & {*run.tick().skipped} and run.scaling.scale == 2.0**29
    steps = {name: role.steps for name, role in run.cast.roles.items()}
    assert sorted(steps.values())[0] == 0 and sorted(steps.values())[-1] == 1, steps


class Steep(nn.Module):
    """Finite values whose slope is infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :3] + self.at.abs().sqrt()


def test_what_no_scale_helps_ends_the_run() -> None:
    data = Dataset(x=Rng(1).normal(32, 6, dtype=torch.float32), y=Rng(2).integers(32, 3))
    run = distill(nn.Linear(6, 3), Steep(), KD(), data, steps=60, batch=16, autocast=torch.float16)
    with pytest.raises(Diverged, match=f"at tick {int(torch.tensor(FIRST).log2()) + PATIENCE - 1}"):
        run.finish()


def test_good_ticks_double_the_scale() -> None:
    run = classified()
    run.scaling = planted(4.0)
    run.scaling.every = 3
    assert [(run.tick(), run.scaling.scale)[1] for _ in range(7)] == [4, 4, 8, 8, 8, 16, 16]


@pytest.mark.parametrize("ticks", [5, 30])
def test_a_run_goes_on_with_its_scale(ticks: int, tmp_path: Path) -> None:
    """While gradients overflow, and when the scale has not changed for a while."""
    whole = classified(optim=Adam())
    whole.scaling = planted(2.0**50)
    for _ in range(ticks):
        whole.tick()
    write_folder(tmp_path / "state", state=whole.state_dict())
    run = classified(optim=Adam())
    run.load_state_dict(read_state(tmp_path / "state"))
    assert run.scaling and run.scaling.state_dict() == whole.scaling.state_dict()
    assert (run.scaling.scale == 2.0**45) == (ticks == 5) == (run.scaling.good == 0)
    for one in (whole, run):
        one.finish()
    assert all(map(torch.equal, params(whole), params(run)))
    assert run.scaling.state_dict() == whole.scaling.state_dict()


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_other_precisions_know_no_scale(autocast: torch.dtype | None) -> None:
    run = classified(autocast=autocast)
    assert run.scaling is None and "scaling" not in run.state_dict()


def test_frozen_weights_in_float16_scale_losses() -> None:
    """What comes back through them is in float16 too."""
    run = generated(DMD(), rank=2, dtype=torch.float32, memory=Memory(frozen="fp16"), steps=3)
    assert run.scaling is not None


def test_what_is_trained_is_finer() -> None:
    with pytest.raises(Incompatible, match="single precision"):
        distill(
            nn.Linear(2, 2),
            nn.Linear(2, 2).half(),
            KD(),
            Dataset(x=torch.zeros(4, 2), y=torch.zeros(4).long()),
            steps=1,
            batch=2,
        )


def test_the_setting() -> None:
    problem = loading.load_problem("digits-classify")
    recipe = loading.load_recipe("kd", problem, {"autocast": "fp16", "batch": "8"})
    assert recipe.stages[0].start(problem, None, 0).autocast == torch.float16  # type: ignore[union-attr, arg-type], a stage that needs no prior
    with pytest.raises(BadSetting, match="autocast"):
        loading.load_recipe("kd", problem, {"autocast": "fp8"})
