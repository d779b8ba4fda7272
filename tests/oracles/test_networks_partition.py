"""Transfer between any two networks: who teaches which example, what is kept, and what may not be missing."""

from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence

from limbeck import KD, SGD, Adam, Dataset, PartitionedKD, distill, knows_better, partitioned_kl, soft_kl
from limbeck.engine.tick import Tick
from limbeck.errors import BadSetting, Incompatible
from limbeck.rng import Rng
from tests.oracles.exact import F64, close, gradient, seeds

labelled = pytest.mark.parametrize("labels", [True, False])


def logits(seed: int, n: int = 12, classes: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = Rng(("partition", seed))
    s, t, before = (3 * rng.normal(n, classes, dtype=F64) for _ in range(3))
    return s, t, before, rng.integers(n, classes)


@seeds
@labelled
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_each_example_follows_whoever_knows_it_better(seed: int, labels: bool, temperature: float) -> None:
    """Probabilities at T = 1 choose, whatever the temperature of the divergence."""
    s, t, before, y = logits(seed)
    value = partitioned_kl(s, t, before, y if labels else None, temperature=temperature)
    chosen = set[str]()
    for i in range(len(s)):
        p, q = t[i].softmax(0), before[i].softmax(0)
        theirs = bool(p[y[i]] > q[y[i]]) if labels else bool(p.max() > q.max())
        target = t[i] if theirs else before[i]
        kl = kl_divergence(Categorical(logits=target / temperature), Categorical(logits=s[i] / temperature))
        close(value[i], temperature**2 * kl)
        chosen.add("teacher" if theirs else "before")
    assert chosen == {"teacher", "before"}


@seeds
@labelled
def test_a_student_that_knows_all_better_does_not_move(seed: int, labels: bool) -> None:
    """Neither does one whose teacher is as it was itself: the gradient at its start is 0."""
    s, t, _, y = logits(seed)
    sure = s + 50 * nn.functional.one_hot(y, 5)
    for teacher in (t, sure):
        (grad,) = gradient(
            lambda z, teacher=teacher: partitioned_kl(z, teacher, sure, y if labels else None).sum(), sure
        )
        close(grad, torch.zeros_like(grad))


@seeds
def test_where_the_student_knew_nothing_it_is_kl_to_the_teacher(seed: int) -> None:
    s, t, before, y = logits(seed)
    for labels in (None, y):
        nothing = 0 * before if labels is None else before - 100 * nn.functional.one_hot(y, 5)
        close(partitioned_kl(s, t, nothing, labels), soft_kl(s, t))


def test_of_equals_neither_is_better() -> None:
    t = torch.randn(6, 4)
    assert not knows_better(t, t.clone()).any() and not knows_better(t, t.clone(), torch.arange(6) % 4).any()


def run(objective: PartitionedKD, **fields: Tensor) -> nn.Linear:
    torch.manual_seed(0)
    teachers = {"teacher": nn.Linear(4, 3), "before": nn.Linear(4, 3)}
    torch.manual_seed(1)
    student = nn.Linear(4, 3)
    distill(teachers, student, objective, Dataset(**fields), steps=3, batch=8, optim=Adam(lr=0.1)).finish()
    return student


def test_the_objective_is_the_loss() -> None:
    s, t, before, y = (z.float() if z.is_floating_point() else z for z in logits(0))
    tick = SimpleNamespace(
        batch={"y": y}, answer=lambda who: SimpleNamespace(out={"student": s, "before": before}[who])
    )
    for labels in (True, False):
        value = PartitionedKD(labels=labels, temperature=2.0).value(s, t, cast(Tick, tick))
        close(value, partitioned_kl(s, t, before, y if labels else None, temperature=2.0), 1e-6)


def test_the_teacher_as_before_is_kd() -> None:
    torch.manual_seed(0)
    teacher, x = nn.Linear(4, 3), torch.randn(9, 4)
    weights = []
    for objective in (KD(temperature=2.0, alpha=1.0), PartitionedKD(before="teacher", labels=False, temperature=2.0)):
        torch.manual_seed(1)
        student = nn.Linear(4, 3)
        distill(teacher, student, objective, Dataset(x=x), steps=3, batch=8, optim=SGD(lr=0.1)).finish()
        weights.append(student.weight.detach())
    assert torch.equal(*weights)


def test_labels_are_asked_for_where_they_are_wanted() -> None:
    x, y = torch.randn(9, 4), torch.arange(9) % 3
    assert not torch.equal(run(PartitionedKD(), x=x, y=y).weight, run(PartitionedKD(labels=False), x=x).weight)
    with pytest.raises(Incompatible, match="PartitionedKD needs data with y, got only x"):
        run(PartitionedKD(), x=x)
    with pytest.raises(Incompatible, match="PartitionedKD needs labels y that are classes, got y of shape"):
        run(PartitionedKD(), x=x, y=torch.zeros(9, 3))


def test_mistakes() -> None:
    with pytest.raises(BadSetting, match="temperature must be above 0, got 0"):
        PartitionedKD(temperature=0)
    with pytest.raises(Incompatible, match="PartitionedKD needs a teacher named 'before', got 'teacher'"):
        distill(nn.Linear(4, 3), nn.Linear(4, 3), PartitionedKD(labels=False), torch.randn(9, 4), steps=1)
    teachers = {"teacher": nn.Linear(4, 3), "before": nn.Linear(4, 2)}
    with pytest.raises(Incompatible, match="PartitionedKD needs a student with 2 classes, got 3"):
        distill(teachers, nn.Linear(4, 3), PartitionedKD(labels=False), torch.randn(9, 4), steps=1, batch=8).finish()
