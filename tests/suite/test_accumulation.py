"""How a batch is cut changes nothing: 4 × 8 rows are 1 × 32 rows, in float64, with ragged weights too."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from limbeck.engine import SGD, Objective
from limbeck.errors import BadSetting, Incompatible
from tests.suite.cases import EXACT, Case, coupled, homes
from tests.suite.probes import Coupled, Grads, Ragged, Weighted, gradients, lively

ROWS, TOLERANCE = 32, 1e-12


def seen(case: Case, accumulate: int, objective: Objective | None = None, steps: int = 3) -> tuple[list[Grads], list]:
    """Gradients and losses of a few ticks in which every term is due."""
    run = lively(case.run(objective, steps=steps, batch=ROWS, accumulate=accumulate, optim=SGD(lr=1e-3, momentum=0.9)))
    with gradients() as grads:
        losses = [step.losses for step in run]
    return grads, losses


def pairs(one: list[Grads], other: list[Grads]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Gradients side by side, by where they are."""
    for i, (mine, theirs) in enumerate(zip(one, other, strict=True)):
        assert mine.keys() == theirs.keys()
        for role in mine:
            assert mine[role].keys() == theirs[role].keys()
            yield from ((f"tick {i}, {role}.{k}", g, theirs[role][k]) for k, g in mine[role].items())


def assert_equal(case: Case, objective: Objective | None = None) -> None:
    (one, losses), (four, cut) = seen(case, 1, objective), seen(case, 4, objective)
    for where, whole, summed in pairs(one, four):
        assert float((whole - summed).norm()) <= TOLERANCE * float(whole.norm()), where
    for a, b in zip(losses, cut, strict=True):
        assert a == pytest.approx(b, rel=TOLERANCE, abs=TOLERANCE)


@pytest.mark.parametrize("case", homes(), ids=str)
def test_micro_batches_are_one_batch(case: Case) -> None:
    """Or are refused, where a loss couples its batch."""
    if coupled(case):
        with pytest.raises(Incompatible, match="needs whole batches"):
            case.run(accumulate=4)
    else:
        assert_equal(case.exact())


@pytest.mark.parametrize("student", ["Particles", "GrowingParticles", "Image", "OneStep"])
def test_micro_batches_are_one_batch_for_every_student(student: str) -> None:
    assert_equal(Case("DMD", student, "Trained", kind=EXACT))


@pytest.mark.parametrize("student", ["OneStep", "FewStep"])
def test_ragged_weights_have_one_denominator(student: str) -> None:
    """Several weighted losses of one student, through its draw and around it, beside one that is not weighted.

    In each a micro-batch has no weight at all, so a mean of means would be far off.
    """
    assert_equal(Case("SDS", student, "Trained", kind=EXACT), Ragged())


def test_a_weighted_loss_is_the_weighted_mean() -> None:
    """Σ value·weight / Σ weight over the whole batch, as metrics report it and as the gradient has it."""
    case = Case("SDS", "Image", "Trained", kind=EXACT)
    for accumulate in (1, 2, 4):
        with gradients() as grads:
            (step,) = case.run(Weighted(), steps=1, batch=8, accumulate=accumulate)
        w = torch.arange(8.0, dtype=torch.float64)
        assert step.losses["weighted"] == pytest.approx(float((w * w).sum() / w.sum()), rel=1e-14)
        assert grads[0]["student"]["x"].tolist() == pytest.approx([float(w.sum() / w.sum()), 0.0], rel=1e-14)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_no_weight_at_all_is_no_gradient(accumulate: int) -> None:
    """A tick in which a loss has no example is no failure: nothing is learned from it, and nothing is skipped."""
    run = Case("SDS", "OneStep", "Trained").run(Ragged(empty=True), steps=2, accumulate=accumulate)
    run.terms = tuple(term for term in run.terms if term.name in ("direct", "drawn", "judge"))
    with gradients() as grads:
        steps = list(run)
    assert all(step.losses == {"direct": 0, "drawn": 0, "judge": 0} and not step.skipped for step in steps)
    assert all(not g.any() for tick in grads for role in tick.values() for g in role.values())


def test_coupled_losses_are_refused_over_micro_batches() -> None:
    case = Case("SDS", "Particles", "Trained")
    case.run(Coupled(), accumulate=1, steps=2).finish()
    with pytest.raises(Incompatible, match="coupled, which couples its batch, needs whole batches, got 4 micro"):
        case.run(Coupled(), accumulate=4)


@pytest.mark.parametrize("batch", [1, 6, 30])
def test_a_batch_that_cannot_be_cut_is_refused(batch: int) -> None:
    with pytest.raises(BadSetting, match=f"batch must be a multiple of 4, got {batch}"):
        Case("SDS", "Particles", "Trained").run(batch=batch, accumulate=4)


@pytest.mark.parametrize("case", homes(), ids=str)
def test_micro_batches_with_dropout_are_seeded(case: Case) -> None:
    """With dropout a cut batch has other masks, by design; it still has the same bits every time."""
    cuts = 1 if coupled(case) else 2
    (one, _), (two, _) = (seen(case, cuts, steps=2) for _ in range(2))
    assert all(torch.equal(a, b) for _, a, b in pairs(one, two))
