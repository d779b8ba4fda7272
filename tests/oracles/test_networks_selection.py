"""A policy that chooses among teachers: what it hears, how it is rewarded, and whom it comes to choose."""

from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck import (
    KD,
    SGD,
    Adam,
    Dataset,
    ReinforcedSelection,
    Rng,
    chosen_mean,
    distill,
    loss_after,
    reinforce,
)
from limbeck.errors import BadSetting, Incompatible
from limbeck.teachers import Ensemble
from tests.oracles.exact import F64, close, descended, gradient, seeds, tensor


def normal(*names: object, shape: tuple[int, ...]) -> Tensor:
    return Rng(("selection", *names)).normal(*shape, dtype=F64)


def linear(name: object) -> nn.Linear:
    net = nn.Linear(4, 3, dtype=F64)
    with torch.no_grad():
        net.weight.copy_(normal(name, "w", shape=(3, 4)))
        net.bias.copy_(normal(name, "b", shape=(3,)))
    return net


def data(n: int = 8) -> Dataset:
    return Dataset(x=normal("x", shape=(n, 4)), y=torch.arange(n) % 3)


@seeds
def test_the_mean_is_of_the_chosen_and_of_all_where_none_is(seed: int) -> None:
    p = normal(seed, shape=(8, 3, 5)).softmax(2)
    chosen = torch.tensor([*product([False, True], repeat=3)])
    made = chosen_mean(p, chosen)
    for i, row in enumerate(chosen):
        picked = [p[i, k] for k in range(3) if row[k]] or [*p[i]]
        close(made[i], torch.stack(picked).mean(0))


@seeds
def test_reinforce_is_the_gradient_of_the_mean_reward(seed: int) -> None:
    """Summed over all actions, weighed by their probabilities: exact, no sampling."""
    score = normal(seed, "score", shape=(1, 3))
    actions = torch.tensor([*product([False, True], repeat=3)])
    reward = normal(seed, "reward", shape=(8,))

    def likely(score: Tensor) -> Tensor:
        p = score.sigmoid()
        return torch.where(actions, p, 1 - p).prod(1)

    (expected,) = gradient(lambda score: -(likely(score) * reward).sum(), score)
    fixed = likely(score)
    (made,) = gradient(lambda s: (fixed * reinforce(s.expand(8, 3), actions, reward)).sum(), score)
    close(made, expected)
    (less,) = gradient(lambda s: (fixed * reinforce(s.expand(8, 3), actions, reward - 2)).sum(), score)
    close(less, expected)  # no baseline changes it


def test_an_advantage_does_not_move() -> None:
    reward = tensor(1.0).requires_grad_()
    assert not reinforce(torch.zeros(1, 1), torch.tensor([[True]]), reward).requires_grad


@seeds
def test_the_step_ahead_is_one_of_descent_by_logits(seed: int) -> None:
    s, p, y = normal(seed, "s", shape=(5, 3)), normal(seed, "p", shape=(5, 3)).softmax(1), torch.tensor([0, 1, 2, 0, 1])
    (slope,) = gradient(lambda s: -(2.0 * p * (s / 2.0).log_softmax(1)).sum(), s)
    close(loss_after(s, p, y, step=0.3, temperature=2.0), F.cross_entropy(s - 0.3 * slope, y, reduction="none"))
    close(loss_after(s, s.softmax(1), y), F.cross_entropy(s, y, reduction="none"))  # whom it agrees with
    right = F.one_hot(y, 3).to(s)
    assert (loss_after(s, right, y) < F.cross_entropy(s, y, reduction="none")).all()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_in_warmup_it_is_kd_from_the_average(temperature: float) -> None:
    teachers = {"a": linear("a"), "b": linear("b")}
    objective = ReinforcedSelection(teachers=("a", "b"), warmup=1.0, temperature=temperature, alpha=0.6)
    made = descended(objective, dict(teachers), linear("s"), data(), batch=8)
    if temperature == 1:
        plain = descended(KD(temperature=1.0, alpha=0.6), Ensemble(*teachers.values()), linear("s"), data(), batch=8)
        close(made["weight"], plain["weight"])
    else:  # probabilities are averaged after the temperature
        run = distill(dict(teachers), linear("s"), objective, data(), steps=1, batch=8)
        batch = run.source.take(8, Rng((0, 0, "data")))
        p = torch.stack([(net(batch["x"]) / 4).softmax(1) for net in teachers.values()]).mean(0)
        s = linear("s")(batch["x"])
        soft = 16 * (p * (p.log() - (s / 4).log_softmax(1))).sum(1).mean()
        expected = 0.4 * F.cross_entropy(s, batch["y"]) + 0.6 * soft
        close(torch.tensor(run.tick().losses["reinforcedselection"], dtype=F64), expected.detach())


def test_one_teacher_is_kd_whatever_is_chosen() -> None:
    one = descended(ReinforcedSelection(warmup=0.0), linear("t"), linear("s"), data(), batch=8)
    close(one["weight"], descended(KD(), linear("t"), linear("s"), data(), batch=8)["weight"])


class Says(nn.Module):
    """Puts its faith into the class that a row of x is of, or into the one after it."""

    def __init__(self, offset: int):
        super().__init__()
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        return 5 * x.roll(self.offset, 1)


def test_it_comes_to_choose_who_is_right() -> None:
    rows = Dataset(x=torch.eye(3, dtype=F64), y=torch.arange(3))
    objective = ReinforcedSelection(teachers=("right", "wrong"), temperature=1.0, alpha=0.5)
    student = nn.Linear(3, 3, dtype=F64)
    teachers = {"right": Says(0), "wrong": Says(1)}
    run = distill(dict(teachers), student, objective, rows, steps=300, batch=32, optim=Adam(lr=0.05))
    run.finish()
    x, y = torch.eye(3, dtype=F64), torch.arange(3)
    told = torch.stack([net(x).log_softmax(1) for net in teachers.values()], 1)
    mine = student(x).log_softmax(1)[:, None].expand_as(told)
    state = torch.cat([mine, told.exp(), -told.gather(2, y[:, None, None].expand(3, 2, 1))], 2)
    likely = run.cast.module("reinforcedselection policy")(state)[..., 0].sigmoid()
    assert (likely[:, 0] > 0.9).all() and (likely[:, 1] < 0.2).all()


def test_rewards_send_no_gradient_to_the_student() -> None:
    run = distill(linear("t"), linear("s"), ReinforcedSelection(), data(), steps=1, batch=8, optim=SGD(lr=1.0))
    run.terms = tuple(term for term in run.terms if term.name.endswith("policy"))
    before = run.student.weight.clone()  # type: ignore[operator, union-attr]
    assert list(run.tick().norms) == ["reinforcedselection policy"]
    assert torch.equal(before, run.student.weight)  # type: ignore[arg-type]


def test_what_selection_refuses() -> None:
    with pytest.raises(BadSetting, match="names of teachers, got none"):
        ReinforcedSelection(teachers=())
    with pytest.raises(BadSetting, match="step must be above 0, got 0"):
        ReinforcedSelection(step=0.0)
    with pytest.raises(Incompatible, match="a teacher named 'second'"):
        distill(linear("t"), linear("s"), ReinforcedSelection(teachers=("second",)), data(), steps=1, batch=8)
    run = distill(nn.Linear(4, 2, dtype=F64), linear("s"), ReinforcedSelection(), data(), steps=1, batch=8)
    with pytest.raises(Incompatible, match="3 classes of 'teacher', got 2"):
        run.tick()
