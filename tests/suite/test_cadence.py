"""Who steps how often: roles, averages and targets, counted over 30 ticks with and without micro-batches."""

from typing import Any

import pytest
import torch

from limbeck.engine import EMA, Run
from limbeck.objectives import DMD, Consistency
from tests.suite.cases import FOUND, Case, coupled, matches, unequal

TICKS, ROWS = 30, 8
COUNTED = {case.objective: case for case in matches() if case.objective in FOUND["OBJECTIVES"]}.values()
"""Every export on the last student that it fits, for the first ones are slow and a count is a count."""

PARTLY = {"StableKD"}
"""Those that leave some parameters of a role for a part of the run, as what stands between pieces that are joined."""


def due(run: Run, role: str) -> int:
    """Ticks in which some loss trains the role: the last of each of its losses' periods."""
    periods = [term.every for term in run.terms if role in term.roles]
    return sum(any(i % every == 0 for every in periods) for i in range(1, TICKS + 1))


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("case", COUNTED, ids=str)
def test_every_role_steps_when_it_is_due(case: Case, accumulate: int) -> None:
    run = case.run(steps=TICKS, batch=ROWS, accumulate=1 if coupled(case) else accumulate)
    run.finish()
    assert {name: role.steps for name, role in run.cast.roles.items()} == {n: due(run, n) for n in run.cast.roles}
    for role in run.cast.roles.values():
        steps = {int(p["step"]) for p in role.optimizer.state.values()}
        assert max(steps) == role.steps and (len(steps) == 1 or case.objective in PARTLY)
    for target in run.cast.targets.values():
        assert target.updates == target.role.steps


@pytest.mark.parametrize("accumulate", [1, 4])
def test_two_time_scales(accumulate: int) -> None:
    """Five critic steps to one of the student: 6 and 30, and 6 updates of the average."""
    run = Case("DMD", "OneStep", "Trained").run(
        DMD(critic_steps=5), steps=TICKS, batch=ROWS, accumulate=accumulate, ema=EMA(decay=0.9)
    )
    steps = list(run)
    assert [step.i for step in steps if "student" in step.norms] == [5, 10, 15, 20, 25, 30]
    assert (run.cast.roles["student"].steps, run.cast.roles["critic"].steps) == (6, 30)
    assert [target.updates for target in run.cast.targets.values()] == [6]


@pytest.mark.parametrize("ramp", [True, False])
def test_the_average_moves_with_the_student_only(ramp: bool) -> None:
    """After every tick it is θ̄ + (1 − d)·(θ − θ̄) of the last, once for each step of the student."""
    ema = EMA(decay=0.5, ramp=ramp)
    run = Case("DMD", "OneStep", "Trained").run(DMD(critic_steps=3), steps=9, ema=ema)
    known, updates = parameters(run.student), 0
    for step in run:
        if "student" in step.norms:
            d = ema.at(updates)
            known = {k: v.lerp(p.detach(), 1 - d) for (k, v), p in zip(known.items(), students(run), strict=True)}
            updates += 1
        assert unequal(parameters(run.student), known) == []
    assert updates == 3 and ema.at(0) == (0.1 if ramp else 0.5)


def parameters(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def students(run: Run) -> Any:
    return run.cast.students["student"].parameters()


def test_the_result_is_the_average_where_there_is_one() -> None:
    case = Case("SDS", "OneStep", "Trained")
    run, bare = case.run(steps=2), case.run(steps=2, ema=None)
    assert run.finish() is run.result("student") is next(iter(run.cast.targets.values())).module
    assert bare.finish() is bare.cast.students["student"]
    assert not any(p.requires_grad for p in run.student.parameters()) and not run.student.training


def test_equal_averages_are_one() -> None:
    """A consistency target with the run's own decay is the run's average, updated once a step."""
    ema = EMA(decay=0.9)
    run = Case("Consistency", "OneStep", "Trained").run(Consistency(target=ema), steps=3, ema=ema)
    run.finish()
    assert [target.updates for target in run.cast.targets.values()] == [3]


def test_a_target_follows_its_role_beside_another_objective() -> None:
    """In Consistency + DMD the student steps every tick, for the consistency loss; its target follows every step."""
    total = Consistency(target=EMA(decay=0.5)) + 0.3 * DMD(critic_steps=5)
    run = Case("DMD", "OneStep", "Trained").run(total, steps=10, ema=EMA(decay=0.9))
    steps = list(run)
    assert run.cast.roles["student"].steps == 10
    assert [target.updates for target in run.cast.targets.values()] == [10, 10]
    assert [step.i for step in steps if "dmd" in step.losses] == [5, 10]
