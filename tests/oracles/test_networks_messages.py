"""Talking models: a question, the teacher's reply and what both read in it, written out layer by layer."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck import CrossEntropy, Dataset, Rng, Talk, distill
from limbeck.engine import SGD
from limbeck.errors import BadSetting, Incompatible
from tests.oracles.exact import F64


def nets() -> tuple[nn.Sequential, nn.Sequential]:
    """A teacher and a student of three blocks, of other widths."""
    torch.manual_seed(0)
    made = (
        nn.Sequential(nn.Linear(4, n), nn.Tanh(), nn.Linear(n, n), nn.Tanh(), nn.Linear(n, 3)).double() for n in (6, 5)
    )
    teacher, student = made
    return teacher, student


def data() -> Dataset:
    return Dataset(x=Rng("x").normal(32, 4, dtype=F64), y=torch.arange(32) % 3)


def talk(interact: float = 1.0, consistent: float = 1.0, width: int = 4) -> Talk:
    return Talk(lower=("1", "1"), upper=("3", "3"), width=width, interact=interact, consistent=consistent)


@pytest.mark.parametrize(("interact", "consistent"), [(1.0, 1.0), (2.0, 0.0), (0.0, 3.0)])
def test_a_talk_is_what_is_said_and_read_written_out(interact: float, consistent: float) -> None:
    teacher, student = nets()
    run = distill(teacher, student, talk(interact, consistent), data(), steps=5, batch=8)
    batch = data().take(8, Rng((0, 0, "data"), part=slice(0, 8), total=8))
    x, y = batch["x"], batch["y"]
    # four coders
    ask, hear, reply, read = run.cast.roles["talk coders 1, 1, 3, 3"].module  # type: ignore[misc]
    s, t = student[:2](x), teacher[:2](x)
    heard = hear(ask(s))
    told = read(reply(teacher[2:4](heard)))
    v = student[:4](x)
    said = F.cross_entropy(student[4](told), y)
    apart = ((heard - t) ** 2).mean() + ((told - v) ** 2).mean()
    assert ask(s).shape == (8, 4)
    expected = interact * said + consistent * apart
    assert run.tick().losses["talk"] == pytest.approx(expected.item(), rel=1e-9)


def test_the_task_teaches_who_asks_and_who_reads_but_not_the_teacher() -> None:
    teacher, student = nets()
    before = {name: p.clone() for name, p in teacher.named_parameters()}
    objective = talk(consistent=0.0)
    run = distill(teacher, student, objective, data(), steps=5, batch=8, optim=SGD(lr=0.1))
    coders = run.cast.roles["talk coders 1, 1, 3, 3"].module
    start = [p.detach().clone() for p in (*coders.parameters(), *student.parameters())]
    run.tick()
    moved = [not torch.equal(a, b) for a, b in zip(start, (*coders.parameters(), *student.parameters()), strict=True)]
    middle = [False, False]  # what the student itself makes of its lower state is not asked
    assert moved == [True] * 16 + [True, True, *middle, True, True]
    assert all(torch.equal(p, before[name]) for name, p in teacher.named_parameters())


def test_a_talk_leaves_no_trace_and_adds_to_a_task() -> None:
    teacher, student = nets()
    run = distill(teacher, student, CrossEntropy() + talk(), data(), steps=60, batch=16)
    losses = [step.losses for step in run]
    assert losses[-1]["talk"] < losses[0]["talk"] and sorted(losses[0]) == ["cross_entropy", "talk"]
    x = Rng("x").normal(5, 4, dtype=F64)
    assert torch.equal(student(x), student[4](student[3](student[2](student[1](student[0](x))))))


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(BadSetting, match="width must be at least 1"):
        talk(width=0)
    with pytest.raises(BadSetting, match="interact must be at least 0"):
        talk(interact=-1.0)
    teacher, student = nets()
    with pytest.raises(Incompatible, match=r"tap needs a submodule 'blocks\.0'"):
        distill(teacher, student, Talk(), data(), steps=1, batch=8)
    with pytest.raises(Incompatible, match="Talk needs data with y"):
        distill(teacher, student, talk(), Dataset(x=torch.zeros(4, 4)), steps=1, batch=4)
