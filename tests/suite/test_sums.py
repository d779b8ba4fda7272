"""Objectives add and scale: in any order to the same bits, and what has no weight leaves no trace in the student."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from limbeck.engine import Linear, Objective, Run
from limbeck.errors import BadSetting, Incompatible
from limbeck.objectives import DMD, GAN, SDS, Consistency, Critic, Fake
from tests.suite.cases import Case, Kind, build, couples, few, quarrel, unequal
from tests.suite.probes import gradients, lively

STEPS = 5
"""At least one update of the student by DMD, which has one every five ticks."""

SUMMABLE = [(case, other) for case, other in couples() if not quarrel(case, other)]
ORDERED = [*SUMMABLE, *((Case(b, a.student, a.teacher), a.objective) for a, b in SUMMABLE)]


def traced(run: Run) -> dict[str, Any]:
    """All losses and norms of a run, and its state at the end."""
    steps = [(step.losses, step.norms) for step in run]
    return {"steps": repr(steps), **run.state_dict()}


def pair(case: Case, other: str) -> tuple[Objective, Objective]:
    """Both objectives."""
    return case.make(), build("OBJECTIVES", other)


def share_a_changed_role(case: Case, other: str) -> bool:
    """Whether the second objective trains a role of the first by a loss that the first has not.

    Then the first cannot stay as it was, whatever the second weighs: a weight is on what students lose, and a critic
    that lends its features to a discriminator learns from it.
    """
    a, b = (case.run(objective).terms for objective in pair(case, other))
    known, roles = {term.key for term in a}, {role for term in a for role in term.roles} - {"student"}
    return any(set(term.roles) & roles for term in b if term.key not in known)


UNTOUCHED = [(case, other) for case, other in ORDERED if not share_a_changed_role(case, other)]


@pytest.mark.parametrize(("case", "other"), SUMMABLE, ids=str)
def test_a_sum_commutes_to_the_bit(case: Case, other: str) -> None:
    a, b = pair(case, other)
    one, two = (traced(case.run(total, steps=STEPS)) for total in (a + 0.3 * b, 0.3 * b + a))
    assert unequal(one, two) == []


def test_three_summands_in_any_order() -> None:
    a, b, c = Consistency(), 0.3 * DMD(critic_steps=2), 0.1 * GAN(critic_steps=3)
    case = Case("DMD", "OneStep", "Trained")
    first, *others = (traced(case.run(total, steps=STEPS)) for total in ((a + b) + c, c + (b + a), b + (c + a)))
    assert all(unequal(first, other) == [] for other in others)


@pytest.mark.parametrize("layer", ["dropout", "batchnorm"])
@pytest.mark.parametrize(("case", "other"), UNTOUCHED, ids=str)
def test_what_weighs_nothing_leaves_the_student_alone(case: Case, other: str, layer: Any) -> None:
    """The student of a + 0·b has the bits of the student of a, and so have its moments, steps and averages.

    Masks of dropout are no others for b's sake, and what b's critic draws does not move running statistics.
    """
    case = replace(case, kind=Kind(layer=layer))
    a, b = pair(case, other)
    mine, theirs = alone(case), traced(case.run(a + 0 * b, steps=STEPS))
    assert unequal(mine["roles"]["student"], theirs["roles"]["student"]) == []
    assert unequal(mine["targets"], {name: theirs["targets"][name] for name in mine["targets"]}) == []


@cache
def alone(case: Case) -> dict[str, Any]:
    """What an objective leaves by itself."""
    return traced(case.run(steps=STEPS))


def test_only_a_discriminator_that_trains_the_critic_is_in_the_way() -> None:
    left = {other for case, other in ORDERED if (case, other) not in UNTOUCHED}
    assert left == {"GAN, trains the critic"}


@pytest.mark.parametrize(("case", "other"), SUMMABLE, ids=str)
def test_gradients_add(case: Case, other: str) -> None:
    """Nothing is averaged away: the student's gradient under a + ½·b is the sum of both, in float64."""
    a, b = pair(case, other)
    first, second, both = (student_gradient(case.exact(), total) for total in (a, b, a + 0.5 * b))
    assert all(any(g.norm() > 1e-6 for g in grads.values()) for grads in (first, second, both))
    for name, whole in both.items():
        parts = [part[name] * w for part, w in ((first, 1.0), (second, 0.5)) if name in part]
        torch.testing.assert_close(whole, torch.stack(parts).sum(0), rtol=1e-11, atol=1e-13)


def student_gradient(case: Case, objective: Objective) -> dict[str, torch.Tensor]:
    with gradients() as seen:
        lively(case.run(objective, steps=1)).finish()
    return seen[0]["student"]


@pytest.mark.parametrize("case", few(), ids=str)
def test_a_factor_scales_the_student_only(case: Case) -> None:
    """Twice an objective has twice the student's gradient, and other roles' gradient as it was, to the bit.

    What learns by the student's own losses, such as a projector of its features, goes along with it.
    """
    run = case.run()
    along = {role for term in run.terms if set(term.roles) & set(run.cast.students) for role in term.roles}
    with gradients() as seen:
        for objective in (case.make(), 2 * case.make()):
            lively(case.run(objective, steps=1)).finish()
    once, twice = seen
    assert once.keys() == twice.keys()
    for role, grads in once.items():
        factor = 2 if role in along else 1
        assert all(torch.equal(twice[role][name], grad * factor) for name, grad in grads.items())


def test_a_weight_may_move_with_the_run() -> None:
    """A schedule weighs each tick by its progress, and where it is 0 the loss is not due."""
    case = Case("SDS", "Particles", "Trained")
    with gradients() as seen:
        steps = list(case.run(Linear(first=1.0, last=0.0, until=0.5) * SDS(), steps=4))
    assert [sorted(step.losses) for step in steps] == [["sds"], ["sds"], [], []]
    with gradients() as plain:
        case.run(SDS(), steps=1).finish()
    assert torch.equal(seen[0]["student"]["x"], plain[0]["student"]["x"])


def test_factors_multiply() -> None:
    case = Case("SDS", "Particles", "Trained")
    totals = (0.25 * SDS(), 0.5 * (SDS() * 0.5), 0.5 * (0.5 * SDS()))
    first, *others = (traced(case.run(total, steps=2)) for total in totals)
    assert all(unequal(first, other) == [] for other in others)


@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_a_weight_is_not_negative(weight: float) -> None:
    with pytest.raises(BadSetting, match="weight must be at least 0"):
        weight * SDS()


def test_a_run_of_no_weight_is_refused() -> None:
    with pytest.raises(Incompatible, match="needs a loss that trains the student, got none of weight above 0"):
        Case("SDS", "Particles", "Trained").run(0 * SDS())


def test_an_equal_critic_is_shared_and_counted_once() -> None:
    critic = Critic()
    case, total = (
        Case("DMD", "OneStep", "Trained"),
        DMD(fake=Fake(critic=critic)) + GAN(critic=critic) + GAN(critic=critic),
    )
    run = case.run(total)
    assert [term.name for term in run.terms] == ["dmd", "gan", "gan#2", "critic", "discriminator"]
    with gradients() as seen:
        for objective in (DMD(fake=Fake(critic=critic)), total):
            case.run(objective, steps=1).finish()
    alone, shared = seen
    assert all(torch.equal(shared["critic"][name], grad) for name, grad in alone["critic"].items())


def test_unequal_critics_are_refused() -> None:
    from limbeck.diffusion import Karras

    with pytest.raises(Incompatible, match="the role 'critic' needs one set of settings, got both Critic"):
        Case("DMD", "OneStep", "Trained").run(DMD() + GAN(critic=Critic(times=Karras())))
