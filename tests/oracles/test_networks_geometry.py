"""Learned shares: edges written out, both ends of the fused loss, and the step ahead against finite differences."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck import KD, SGD, Dataset, TrilateralKD, distill, edges, fused, soft_kl
from limbeck.engine.loop import Run
from limbeck.errors import BadSetting, Incompatible
from limbeck.objectives.networks.geometry import average
from limbeck.rng import Rng
from tests.oracles.exact import F64, close, seeds

ROLE = "trilateralkd share"


def logits(seed: int, n: int = 8, classes: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    rng = Rng(("geometry", seed))
    s, t = (2 * rng.normal(n, classes, dtype=F64) for _ in range(2))
    return s, t, rng.integers(n, classes)


@seeds
def test_edges_written_out(seed: int) -> None:
    s, t, y = logits(seed)
    means = Rng(("means", seed)).normal(4, 4, dtype=F64).softmax(1)
    for i, row in enumerate(edges(s, t, y, means)):
        p, q, mean = s[i].softmax(0), t[i].softmax(0), means[y[i]]
        g = torch.tensor([float(c == y[i]) for c in range(4)], dtype=F64)
        for got, (a, b) in zip(row, ((p, g), (q, g), (p, q), (p, mean), (q, mean), (mean, g)), strict=True):
            close(got, sum((u - v) ** 2 for u, v in zip(a, b, strict=True)) ** 0.5)  # type: ignore[arg-type]


@seeds
@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_a_share_of_all_or_nothing_or_the_same_for_all(seed: int, temperature: float) -> None:
    """KL alone, labels alone, and plain KD."""
    s, t, y = logits(seed)
    close(fused(s, t, y, torch.ones(8), temperature=temperature), soft_kl(s, t, temperature=temperature))
    close(fused(s, t, y, torch.zeros(8), temperature=temperature), F.cross_entropy(s, y, reduction="none"))
    tick: Any = type("Batch", (), {"batch": {"y": y}})()
    same = fused(s, t, y, torch.full((8,), 0.3, dtype=F64), temperature=temperature)
    close(same, KD(alpha=0.3, temperature=temperature).value(s, t, tick))


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return tuple(nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4)).double() for _ in range(2))  # type: ignore[return-value]


def data(n: int = 16) -> dict[str, Tensor]:
    rng = Rng(("geometry", "data"))
    names = ("", "other_")
    x = {f"{name}x": rng.normal(n, 5, dtype=F64) for name in names}
    return {**x, **{f"{name}y": rng.integers(n, 4) for name in names}}


class Rows(Dataset):
    """Always the same batch: all rows in order."""

    def take(self, n: int, rng: Rng) -> Any:
        return {name: tree[:n] for name, tree in self.rows.items()}


def begun(objective: TrilateralKD, lr: float = 0.0, **settings: Any) -> Run:
    teacher, student = networks()
    run = distill(teacher, student, objective, Rows(**data()), steps=5, batch=16, optim=SGD(lr=lr), **settings)
    for p in run.cast.roles[ROLE].params.values():
        p.data += 0.3 * Rng((p.numel(), "share")).normal(*p.shape, dtype=F64)
    return run


def after(run: Run, rate: float) -> float:
    """CE on the other data after one step of the student, by hand, with the shares as they are."""
    teacher, student = run.cast.teachers["teacher"], run.cast.student
    x, y, other_x, other_y = (data()[name] for name in ("x", "y", "other_x", "other_y"))
    means = run.cast.kept["trilateralkd means"]
    assert isinstance(means, Tensor)
    s, params = student(x), [*student.parameters()]
    with torch.no_grad():
        share = run.cast.roles[ROLE].module(edges(s, teacher(x), y, means)).sigmoid()[:, 0]
    with torch.enable_grad():
        steps = torch.autograd.grad(fused(student(x), teacher(x), y, share, temperature=2.0).mean(), params)
    copies = [p.detach().clone() for p in params]
    with torch.no_grad():
        for p, g in zip(params, steps, strict=True):
            p -= rate * g
        value = F.cross_entropy(student(other_x), other_y).item()
        for p, copy in zip(params, copies, strict=True):
            p.copy_(copy)
    return value


def test_the_step_ahead_is_what_finite_differences_say() -> None:
    """SGD with rate 1 moves the network by its gradient, which is that of the loss after the student's step."""
    objective = TrilateralKD(temperature=2.0, rate=0.7, width=3)
    run = begun(objective, lr=1.0)
    params = run.cast.roles[ROLE].params
    before = {name: p.detach().clone() for name, p in params.items()}
    step = run.tick()
    moved = {name: before[name] - p.detach() for name, p in params.items()}
    again = begun(objective)
    assert step.losses["trilateralkd ahead"] == pytest.approx(after(again, 0.7), rel=1e-9)
    for name, p in again.cast.roles[ROLE].params.items():
        for i in range(p.numel()):
            values = []
            for change in (1e-5, -1e-5):
                with torch.no_grad():
                    p.view(-1)[i] += change
                    values.append(after(again, 0.7))
                    p.view(-1)[i] -= change
            expected = (values[0] - values[1]) / 2e-5
            assert moved[name].view(-1)[i].item() == pytest.approx(expected, abs=1e-8), name
    assert max(m.abs().max().item() for m in moved.values()) > 1e-4


def test_looking_ahead_leaves_student_teacher_and_statistics_as_they_are() -> None:
    torch.manual_seed(0)
    teacher, student = (nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)).double() for _ in range(2))
    run = distill(teacher, student, TrilateralKD(), Rows(**data()), steps=5, batch=16, optim=SGD(lr=0.0))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    run.tick()
    known = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert known == {"1.running_mean", "1.running_var", "1.num_batches_tracked"} and student[1].num_batches_tracked == 1


def test_the_student_learns_by_its_share_of_each() -> None:
    """Its gradient does not go through the network, and sees the shares at the tick's start."""
    run = begun(TrilateralKD(temperature=2.0), lr=1.0)
    teacher, student = run.cast.teachers["teacher"], run.cast.student
    x, y = data()["x"], data()["y"]
    share = TrilateralKD(temperature=2.0).shares(run.cast, student(x), teacher(x), y).detach()
    value = fused(student(x), teacher(x), y, share, temperature=2.0).mean()
    expected = torch.autograd.grad(value, [*student.parameters()])
    before = [p.detach().clone() for p in student.parameters()]
    run.tick()
    for p, old, grad in zip(student.parameters(), before, expected, strict=True):
        close(old - p.detach(), grad)


def test_shares_are_one_half_at_first_and_means_follow_the_teacher() -> None:
    teacher, student = networks()
    objective = TrilateralKD(decay=0.5)
    run = distill(teacher, student, objective, Rows(**data()), steps=40, batch=16, optim=SGD(lr=0.0))
    x, y = data()["x"], data()["y"]
    close(objective.shares(run.cast, student(x), teacher(x), y), torch.full((16,), 0.5, dtype=F64))
    run.finish()
    for k in range(4):
        close(run.cast.kept["trilateralkd means"][k], teacher(x)[y == k].softmax(1).mean(0), 1e-9)  # type: ignore[index]


def test_average_leaves_classes_that_do_not_occur() -> None:
    means = torch.full((3, 3), 1 / 3)
    average(means, torch.eye(3), torch.tensor([0, 0, 2]), 0.0)
    close(means, torch.tensor([[0.5, 0.5, 0.0], [1 / 3] * 3, [0.0, 0.0, 1.0]]), 1e-6)


def test_a_teacher_that_is_wrong_about_some_is_trusted_about_others() -> None:
    rng = Rng(("trust",))
    y = rng.integers(400, 4)
    x = 3 * F.one_hot(y, 4).float() + rng.normal(400, 4)

    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            turned = torch.stack([x[:, 1], x[:, 0], x[:, 2], x[:, 3]], 1)
            return 3 * torch.where((x.argmax(1) < 2)[:, None], turned, x)

    torch.manual_seed(0)
    source = Dataset(x=x[:200], y=y[:200], other_x=x[200:], other_y=y[200:])
    objective, student = TrilateralKD(temperature=1.0), nn.Linear(4, 4)
    run = distill(Wrong(), student, objective, source, steps=200, batch=64, optim=SGD(lr=1.0))
    run.finish()
    with torch.no_grad():
        shares = objective.shares(run.cast, student(x), Wrong()(x), y)
    assert shares[y < 2].mean() < 0.8 * shares[y >= 2].mean()


def test_mistakes() -> None:
    for settings, said in (
        ({"temperature": 0}, "temperature must be above 0"),
        ({"rate": 0}, "rate must be above 0"),
        ({"width": 0}, "width must be at least 1"),
        ({"decay": 1.5}, "decay must be between 0 and 1"),
    ):
        with pytest.raises(BadSetting, match=said):
            TrilateralKD(**settings)
    with pytest.raises(Incompatible, match="TrilateralKD needs data with other_x and other_y, got only x, y"):
        distill(*networks(), TrilateralKD(), Dataset(x=data()["x"], y=data()["y"]), steps=1)
    with pytest.raises(Incompatible, match="which couples its batch, needs whole batches, got 2 micro-batches"):
        distill(*networks(), TrilateralKD(), Dataset(**data()), steps=1, accumulate=2)
    shares = {**data(), "other_y": torch.zeros(16, 4)}
    with pytest.raises(Incompatible, match="TrilateralKD needs classes for validation, got"):
        distill(*networks(), TrilateralKD(), Dataset(**shares), steps=1, batch=8).finish()
