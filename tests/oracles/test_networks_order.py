"""Who is asked when: a pass without a graph comes before those with one, and changes nothing but memory."""

import weakref
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from limbeck import KD, CrossEntropy, Dataset, FitNets, Objective, OnLogits, Run, distill
from limbeck.engine import Term, Tick
from limbeck.engine.books import Books
from limbeck.engine.roles import Cast
from limbeck.rng import Rng, seeded


@dataclass(frozen=True, kw_only=True)
class Second(OnLogits):
    """Asks another teacher inside `value`, where there is no autocast."""

    def value(self, student: Tensor, teacher: Tensor, tick: Tick) -> Tensor:
        out = tick.answer("second").out
        assert out is not None
        return ((student - teacher - out) ** 2).sum(-1)


@dataclass(frozen=True, kw_only=True)
class Rarely(KD):
    """Is due at every third tick."""

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        return tuple(replace(term, every=3) for term in super().terms(cast))


def start(objective: Objective, calls: list[str], **settings: object) -> Run:
    def net(name: str) -> nn.Module:
        with seeded(name):
            made = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
        made.register_forward_pre_hook(lambda module, args: calls.append(name))
        return made

    data = Dataset(x=Rng(1).normal(64, 4), y=Rng(2).integers(64, 3))
    teachers = {"teacher": net("teacher"), "second": net("second")}
    return distill(teachers, net("student"), objective, data, steps=9, batch=8, **settings)  # type: ignore[arg-type]


def test_teachers_come_first() -> None:
    """From the second tick on, when it is known who is asked; each once."""
    calls: list[str] = []
    run = start(CrossEntropy() + KD() + KD(teacher="second") + FitNets(pairs={"2": "2"}), calls)
    calls.clear()
    run.tick()
    assert sorted(calls) == ["second", "student", "teacher"]
    for _ in range(2):
        calls.clear()
        run.tick()
        assert sorted(calls[:2]) == ["second", "teacher"] and calls[2:] == ["student"]


def test_nobody_is_asked_for_nothing() -> None:
    """A loss that is not due asks for no pass."""
    calls: list[str] = []
    run = start(CrossEntropy() + Rarely(), calls)
    seen = []
    for _ in range(6):
        calls.clear()
        run.tick()
        seen.append(list(calls))
    alone = ["student"]
    assert seen == [alone, alone, ["student", "teacher"], alone, alone, ["teacher", "student"]]


@pytest.mark.parametrize("settings", [{}, {"accumulate": 2}, {"autocast": torch.bfloat16}], ids=str)
@pytest.mark.parametrize("objective", [KD() + CrossEntropy() + FitNets(pairs={"2": "2"}), Second() + CrossEntropy()])
def test_the_same_bits(objective: Objective, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """As without it, and after going on from a state, whose first tick knows nobody."""
    run = start(objective, [], **settings)
    run.tick(), run.tick()
    state = run.state_dict()
    state = torch.utils._pytree.tree_map_only(Tensor, torch.clone, state)
    run.tick()
    again = start(objective, [], **settings)
    again.load_state_dict(state)
    again.tick()
    monkeypatch.setattr(Books, "_ahead", lambda self, tick: None)
    plain = start(objective, [], **settings)
    for _ in range(3):
        plain.tick()
    for other in (again, plain):
        for a, b in zip(run.student.state_dict().values(), other.student.state_dict().values(), strict=True):
            assert torch.equal(a, b)


def test_nothing_is_kept_for_nobody() -> None:
    """What a teacher said is gone when gradients go back through the student; between ticks no feature is kept."""
    run = start(KD() + FitNets(pairs={"2": "2"}), [])
    said, alive = [], []
    taught = run.cast.teachers["teacher"][2]
    taught.register_forward_hook(lambda module, args, out: said.append(weakref.ref(out.untyped_storage())))
    first = next(run.cast.student.parameters())
    first.register_post_accumulate_grad_hook(lambda p: alive.append(said[-1]() is not None))
    run.tick(), run.tick()
    assert alive == [False, False]
    assert all(not taps._box.found for taps in run.cast.taps.values())
