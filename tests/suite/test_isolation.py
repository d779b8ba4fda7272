"""Nothing leaks: gradients, flags, buffers, random numbers and modes of one part stay out of all others."""

import copy
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.engine import Objective, Role, Run, Term, Tick
from limbeck.engine.tick import same_buffers
from limbeck.objectives import DMD, GAN, SDS, Consistency
from limbeck.students import OneStep
from tests.suite.cases import Case, Kind, coupled, few, sample, trained, unequal
from tests.suite.probes import Ragged, Watch, flags, gradients, lively

SUM = DMD(critic_steps=2) + GAN(critic_steps=3)
ONE = Case("DMD", "OneStep", "Trained")


RUNS = [
    *(pytest.param(case, None, 1, id=str(case)) for case in few()),
    pytest.param(ONE, SUM, 1, id="a sum"),
    pytest.param(ONE, SUM, 2, id="a sum over micro-batches"),
    pytest.param(ONE, Ragged(), 4, id="ragged weights over micro-batches"),
]
"""Every objective, and sums whose terms share passes and micro-batches."""


def holders(run: Run) -> set[str]:
    """Roles of which some parameter has a gradient."""
    return {name for name, role in run.cast.roles.items() if any(p.grad is not None for p in role.params.values())}


@pytest.mark.parametrize(("case", "objective", "accumulate"), RUNS)
def test_gradients_are_where_they_belong(case: Case, objective: Any, accumulate: int) -> None:
    """Before each loss only roles of earlier losses have gradients; while it runs, only its own roles want any."""
    watch = Watch(objective=objective or case.make(), note=lambda term, _: (term, holders(run), flags(run)))
    run = lively(case.run(watch, steps=2, accumulate=accumulate))
    for _ in range(2):
        before = flags(run)
        assert not holders(run)
        watch.notes.clear()
        run.tick()
        assert flags(run) == before and not holders(run)
        for i, (term, roles, wanting) in enumerate(watch.notes):
            assert roles <= {role for other, *_ in watch.notes[:i] for role in other.roles}
            assert {name.partition(".")[0] for name, wants in wanting.items() if wants} == set(term.roles)
            assert all(wants == (name.partition(".")[0] in term.roles) for name, wants in wanting.items())


@pytest.mark.parametrize(("case", "objective", "accumulate"), RUNS)
def test_only_trained_roles_reach_their_optimiser(
    case: Case, objective: Any, accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of a tick the roles with gradients are those that step, in the order of their names."""
    stepped: list[tuple[str, set[str]]] = []
    step = Role.step
    monkeypatch.setattr(Role, "step", lambda role, at: (stepped.append((role.name, holders(run))), step(role, at)))
    run = case.run(objective, steps=6, accumulate=accumulate)
    for i in range(1, 7):
        stepped.clear()
        run.tick()
        due = sorted({role for term in run.terms if i % term.every == 0 for role in term.roles})
        assert stepped == [(role, set(due)) for role in due]


@pytest.mark.parametrize(("case", "objective", "accumulate"), RUNS)
def test_losses_of_others_send_no_gradient_to_the_student(case: Case, objective: Any, accumulate: int) -> None:
    """The student's gradient beside its critics' losses has the bits that it has without them."""
    with gradients() as seen:
        for alone in (False, True):
            run = lively(case.run(objective, steps=1, accumulate=accumulate))
            run.terms = tuple(term for term in run.terms if "student" in term.roles or not alone)
            run.finish()
    both, alone = (grads["student"] for grads in seen)
    assert any(g.norm() > 0 for g in alone.values()) and unequal(both, alone) == []


@pytest.mark.parametrize("case", few(), ids=str)
def test_all_losses_see_the_starting_parameters(case: Case) -> None:
    """No role steps before the last loss of the last micro-batch."""
    parts = 1 if coupled(case) else 2
    run = lively(case.run(Watch(objective=case.make(), note=lambda term, tick: note(run)), steps=2, accumulate=parts))
    watch = run.objective
    assert isinstance(watch, Watch)
    for _ in range(2):
        start = note(run)
        watch.notes.clear()
        run.tick()
        assert len(watch.notes) == parts * len(run.terms)
        assert all(unequal(seen, start) == [] for seen in watch.notes)


def note(run: Run) -> dict[str, Any]:
    """All parameters, at this moment."""
    roles = run.cast.roles.items()
    return {f"{name}.{key}": p.detach().clone() for name, role in roles for key, p in role.params.items()}


def test_a_loss_that_fails_leaves_the_flags_as_they_were() -> None:
    def fail(term: Term, tick: Tick) -> None:
        raise RuntimeError("in the middle of a loss")

    run = ONE.run(Watch(objective=DMD(), note=fail))
    known, state = flags(run), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="in the middle"):
        run.tick()
    assert flags(run) == known and torch.equal(torch.get_rng_state(), state) and torch.is_grad_enabled()


# Buffers

SHARED = DMD(critic_steps=2) + GAN(critic_steps=2)
BESIDE = Consistency() + DMD(critic_steps=3)


def statistics(module: nn.Module) -> dict[str, torch.Tensor]:
    """Buffers, at this moment."""
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


DRAWN = [case for case in few() if any("student" not in term.roles for term in case.run().terms)]


@pytest.mark.parametrize("case", DRAWN, ids=str)
def test_draws_for_others_leave_the_students_statistics(case: Case) -> None:
    """A tick in which only critics learn does not move the running statistics of the student, or of the teacher."""
    run = replace(case, kind=Kind(layer="batchnorm")).run(steps=6)
    run.terms = tuple(replace(term, every=3 if "student" in term.roles else 1) for term in run.terms)
    student, teacher = run.cast.students["student"], run.cast.teachers["teacher"]
    known, taught = statistics(student), statistics(teacher)
    assert any("running_mean" in name for name in known) and any("running_mean" in name for name in taught)
    for step in run:
        moved = unequal(statistics(student), known)
        assert bool(moved) == ("student" in step.norms), f"tick {step.i}: {moved}"
        assert unequal(statistics(teacher), taught) == []
        known = statistics(student)


@pytest.mark.parametrize(
    ("objective", "batches"), [(DMD(critic_steps=2) + GAN(critic_steps=2), 3), (BESIDE, 6 * 2 + 2)]
)
def test_one_draw_moves_the_statistics_once(objective: Objective, batches: int) -> None:
    """All losses of a tick share one draw, and only one that trains the student counts as a batch that it has seen.

    A consistency loss passes two batches through the student, in every tick; DMD draws for it in every third.
    """
    run = replace(ONE, kind=Kind(layer="batchnorm")).run(objective, steps=6)
    run.finish()
    seen = run.cast.students["student"].state_dict()["denoiser.net.layer.num_batches_tracked"]
    assert int(seen) == batches


def test_the_average_has_the_students_statistics() -> None:
    run = replace(ONE, kind=Kind(layer="batchnorm")).run(DMD(critic_steps=2), steps=4)
    run.finish()
    assert unequal(statistics(run.student), statistics(run.cast.students["student"])) == []


def test_buffers_come_back_from_a_pass_that_fails() -> None:
    layer = nn.BatchNorm1d(2)
    known = statistics(layer)
    with pytest.raises(RuntimeError, match="half way"), same_buffers([*layer.buffers()]):
        layer(torch.randn(4, 2))
        raise RuntimeError("half way")
    assert unequal(statistics(layer), known) == []


# Random numbers and modes


def surroundings() -> dict[str, Any]:
    """What a step must leave alone."""
    return {
        "torch": torch.get_rng_state(),
        "numpy": repr(np.random.get_state()),
        "python": repr(random.getstate()),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "dtype": str(torch.get_default_dtype()),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("case", sample(), ids=str)
def test_a_step_leaves_its_surroundings_alone(case: Case, autocast: torch.dtype | None) -> None:
    before = surroundings()
    run = lively(case.run(steps=3, accumulate=1 if coupled(case) else 2, autocast=autocast))
    assert unequal(surroundings(), before) == []
    for _ in run:
        assert unequal(surroundings(), before) == []


@pytest.mark.parametrize("case", sample(), ids=str)
def test_the_surroundings_leave_a_run_alone(case: Case) -> None:
    """Random numbers drawn in between, as a progress picture would, change no bit."""
    runs = [case.run(steps=4) for _ in range(2)]
    runs[0].finish()
    for _ in runs[1]:
        torch.rand(7), np.random.rand(7), random.random()
    assert unequal(runs[0].state_dict(), runs[1].state_dict()) == []


def noises(student: nn.Module, objective: Any) -> list[dict[str, torch.Tensor]]:
    """Noise levels and noise by tick, as the critic's loss sees them."""

    def see(term: Term, tick: Tick) -> dict[str, torch.Tensor]:
        seen = tick.noised(SDS().times)
        return {"t": seen.t, "eps": seen.eps, **({"cond": seen.cond} if seen.cond is not None else {})}

    watch = Watch(objective=objective, note=see)
    ONE.run(watch, student=student, steps=2).finish()
    return watch.notes


def test_a_students_dropout_does_not_move_the_noise() -> None:
    """Masks come from a generator of their own: all other random numbers are the same with and without."""
    students = [OneStep(trained(Kind(layer=layer)), shape=(2,)) for layer in ("none", "dropout")]
    plain, dropped = (noises(student, DMD()) for student in students)
    assert len(plain) == len(dropped) > 1
    assert all(unequal(a, b) == [] for a, b in zip(plain, dropped, strict=True))


def test_a_critics_dropout_does_not_move_the_students_masks() -> None:
    """The student's samples at the first tick are the same beside a critic with dropout and beside one without."""
    shown = []
    for layer in ("none", "dropout"):
        run = Case("DMD", "OneStep", "Trained", kind=Kind(layer=layer))
        watch = Watch(objective=DMD(), note=lambda term, tick: tick.draw().x.detach().clone())
        run.run(watch, student=copy.deepcopy(ONE.run().cast.students["student"].requires_grad_(True)), steps=1).finish()
        shown.append(watch.notes[-1])
    assert torch.equal(*shown)


def mask(term: Term, tick: Tick) -> tuple[float, ...]:
    """What dropout would draw here."""
    with tick.seeded("mask"):
        return tuple(torch.rand(4).tolist())


def test_dropout_is_drawn_anew_lively_and_micro_batch() -> None:
    watch = Watch(objective=SDS(), note=mask)
    Case("SDS", "Image", "Trained").run(watch, steps=2, accumulate=2).finish()
    assert len(set(watch.notes)) == len(watch.notes) == 4
