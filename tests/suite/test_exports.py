"""Every exported objective, student and teacher, by enumeration: it runs, trains whom it says, and leaves the rest."""

import copy
import dataclasses
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

import limbeck.objectives
import limbeck.students
from limbeck.diffusion import Denoiser
from limbeck.engine import Adam, Objective, Run, Student
from limbeck.errors import BadSetting, Incompatible
from limbeck.rng import Rng
from tests.suite.cases import (
    EXACT,
    FOUND,
    NAMES,
    Case,
    Kind,
    build,
    common,
    few,
    finished,
    home,
    homes,
    labels,
    matches,
    points,
    sample,
    unequal,
    verdict,
)
from tests.suite.probes import gradients, lively

TERMS = [(case, term.name) for case in few() for term in case.run().terms]


@pytest.mark.parametrize("table", ["OBJECTIVES", "STUDENTS"])
def test_what_a_room_defines_it_exports(table: str) -> None:
    room = {"OBJECTIVES": limbeck.objectives, "STUDENTS": limbeck.students}[table]
    assert sorted(FOUND[table].keys() - set(room.__all__)) == []


@pytest.mark.parametrize(("table", "name"), [(table, name) for table in NAMES for name in NAMES[table]])
def test_it_can_be_built(table: str, name: str) -> None:
    """Fails with the sentence that says what to add to cases.py."""
    assert build(table, name, *([] if table == "OBJECTIVES" else [Kind()])) is not None


@pytest.mark.parametrize("name", NAMES["OBJECTIVES"])
def test_an_objective_fits_something(name: str) -> None:
    tried = {verdict(Case(name, s, t)) for s in NAMES["STUDENTS"] for t in NAMES["TEACHERS"]}
    assert home(name), f"{name} fits nothing in tests/suite/cases.py: add what it needs there. {sorted(tried)}"


@pytest.mark.parametrize("name", NAMES["STUDENTS"])
def test_a_student_fits_some_objective(name: str) -> None:
    assert any(case.student == name for case in matches()), f"no objective of the suite trains a {name}"


@pytest.mark.parametrize("name", NAMES["TEACHERS"])
def test_a_teacher_fits_some_objective(name: str) -> None:
    fits = [case for case in homes() if verdict(replace(case, teacher=name)) == "fits"]
    assert fits, f"no objective of the suite learns from a {name}"


@pytest.mark.parametrize("case", matches(), ids=str)
def test_it_runs(case: Case) -> None:
    """Finite losses of every term, a gradient for every role, a student that moved, and a teacher that did not."""
    run = lively(case.run(steps=2))
    teacher = run.cast.teachers["teacher"]
    before, known = copy.deepcopy(run.cast.state_dict()), copy.deepcopy(teacher.state_dict())
    for step in run:
        assert list(step.losses) == [term.name for term in run.terms]
        assert all(map(math.isfinite, step.losses.values()))
        assert all(math.isfinite(norm) and norm > 0 for norm in step.norms.values())
        assert sorted(step.norms) == sorted(run.cast.roles) and not step.skipped and step.seconds > 0
    after = run.cast.state_dict()["roles"]
    assert all(unequal(after[name]["module"], before["roles"][name]["module"]) for name in after)
    assert unequal(teacher.state_dict(), known) == []
    assert not teacher.training and all(p.grad is None and not p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("case", homes(), ids=str)
def test_with_batch_statistics_the_teacher_keeps_its_own(case: Case) -> None:
    run = replace(case, kind=Kind(layer="batchnorm")).run(steps=3)
    teacher = run.cast.teachers["teacher"]
    known = copy.deepcopy(teacher.state_dict())
    assert case.teacher != "Trained" or any("running_mean" in name for name in known)
    run.finish()
    assert unequal(teacher.state_dict(), known) == []


@pytest.mark.parametrize(("case", "name"), TERMS, ids=lambda value: str(value))
def test_a_term_trains_exactly_its_roles(case: Case, name: str) -> None:
    run = lively(case.run(steps=1, optim=Adam(lr=1e-2)))
    (term,) = run.terms = tuple(term for term in run.terms if term.name == name)
    before = copy.deepcopy(run.cast.state_dict()["roles"])
    with gradients() as seen:
        (step,) = run
    assert set(seen[0]) == set(step.norms) == set(term.roles)
    after = run.cast.state_dict()["roles"]
    moved = {role for role in after if unequal(after[role]["module"], before[role]["module"])}
    assert moved == set(term.roles)


@pytest.mark.parametrize(("case", "name"), TERMS, ids=lambda value: str(value))
def test_a_term_says_whose_it_is(case: Case, name: str) -> None:
    """Terms of equal names are ordered by the settings that they belong to, and these must read alike everywhere."""
    (term,) = (term for term in case.run().terms if term.name == name)
    assert term.of is not None and "0x" not in repr(term.of)


@pytest.mark.parametrize("case", sample(), ids=str)
def test_the_seed_decides(case: Case) -> None:
    """The same seed gives the same bits, twice in one process; another one does not."""
    first, second, other = (finished(case.run(steps=5, seed=seed)) for seed in (3, 3, 4))
    assert unequal(first, second) == []
    assert unequal(first["roles"]["student"], other["roles"]["student"])


@pytest.mark.parametrize("name", FOUND["OBJECTIVES"])
def test_settings_are_frozen_and_named(name: str) -> None:
    objective: Any = build("OBJECTIVES", name)
    assert dataclasses.is_dataclass(objective) and isinstance(objective, Objective)
    assert objective == build("OBJECTIVES", name) and hash(objective) == hash(build("OBJECTIVES", name))
    assert all(field.kw_only for field in dataclasses.fields(objective))
    for field in dataclasses.fields(objective):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(objective, field.name, None)


STEPS = [
    (name, field.name)
    for name in FOUND["OBJECTIVES"]
    for field in dataclasses.fields(FOUND["OBJECTIVES"][name])
    if field.name.endswith("steps")
]


@pytest.mark.parametrize(("name", "field"), STEPS)
def test_steps_below_one_are_refused(name: str, field: str) -> None:
    with pytest.raises(BadSetting, match=f"{field} must be at least 1, got 0"):
        replace(build("OBJECTIVES", name), **{field: 0})


DRAWN = [name for name in NAMES["STUDENTS"] if isinstance(build("STUDENTS", name, EXACT), Student)]


@pytest.mark.parametrize("name", DRAWN)
def test_a_student_draws_by_its_random_numbers_alone(name: str) -> None:
    student = build("STUDENTS", name, EXACT)
    state = torch.get_rng_state()
    a, b, c = (student.draw(8, labels(8), Rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(a.x, b.x) and a.x.shape == (8, 2) and a.x.dtype == torch.float64 and a.x.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert name == "Image" or not torch.equal(a.x, c.x)


@pytest.mark.parametrize("name", DRAWN)
def test_a_cut_draw_is_the_cut_of_the_draw(name: str) -> None:
    """Micro-batches and ranks see the rows that one whole batch would have shown them."""
    student, cond = build("STUDENTS", name, EXACT), labels(16)
    whole = student.draw(16, cond, Rng(0))
    for part in (slice(0, 4), slice(4, 16)):
        cut = student.draw(part.stop - part.start, cond[part], Rng(0, part=part, total=16))
        assert cut.segment == whole.segment
        torch.testing.assert_close(cut.x, whole.x[part], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("name", DRAWN)
def test_a_clone_is_equal_and_apart(name: str, trainable: bool) -> None:
    student = build("STUDENTS", name, EXACT)
    other = student.clone(trainable=trainable)
    assert unequal(other.state_dict(), student.state_dict()) == []
    assert all(p.requires_grad == trainable for p in other.parameters())
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    assert len(unequal(other.state_dict(), student.state_dict())) >= len(list(student.parameters()))


DENOISERS = [name for name in NAMES["TEACHERS"] if isinstance(build("TEACHERS", name, EXACT), Denoiser)]


@pytest.mark.parametrize("name", DENOISERS)
def test_a_denoiser_keeps_shape_dtype_and_rows(name: str) -> None:
    teacher, x = build("TEACHERS", name, EXACT), points(EXACT, 8)
    t = torch.linspace(0.01, 80, 8, dtype=torch.float64)
    for cond in (None, labels(8)):
        whole = teacher.denoise(x, t, cond)
        assert whole.shape == x.shape and whole.dtype == x.dtype and bool(whole.isfinite().all())
        part = teacher.denoise(x[2:5], t[2:5], None if cond is None else cond[2:5])
        torch.testing.assert_close(part, whole[2:5], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", DENOISERS)
def test_a_clone_of_a_denoiser_is_a_role_or_is_refused(name: str) -> None:
    """A frozen clone is the same map; a trainable one has parameters, or is refused in words before step 0."""
    teacher, x = build("TEACHERS", name, EXACT), points(EXACT, 8)
    t = torch.linspace(0.01, 80, 8, dtype=torch.float64)
    frozen = teacher.clone(trainable=False)
    assert torch.equal(frozen.denoise(x, t, labels(8)), teacher.eval().denoise(x, t, labels(8)))
    assert not any(p.requires_grad for p in frozen.parameters())
    if not any(p.requires_grad for p in teacher.clone(trainable=True).parameters()):
        with pytest.raises(Incompatible, match="needs parameters to train"):
            Case("DMD", "Particles", name, kind=EXACT).run()


def test_common_parts_fit_both() -> None:
    case = common("DMD", "GAN")
    assert case and verdict(case) == verdict(replace(case, objective="GAN")) == "fits"


def test_the_state_is_complete(case: Case = Case("GAN", "FewStep", "Trained")) -> None:
    """Every tensor that a run changes is in its state."""
    run: Run = case.run(steps=3)
    before = copy.deepcopy(run.state_dict())
    run.finish()
    assert len(unequal(before, run.state_dict())) > 20
    run.load_state_dict(before)
    assert unequal(before, run.state_dict()) == []
