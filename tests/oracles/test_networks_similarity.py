"""Similarity of two networks against sums written out and autograd, and what must not change it."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck import (
    ClassSimilarity,
    Dataset,
    Drawn,
    Rng,
    SampleSimilarity,
    class_gradients,
    distill,
    gram_gap,
)
from limbeck.errors import BadSetting, Incompatible
from tests.oracles.exact import F64, close, seeds


def rows(seed: int, *shape: int) -> Tensor:
    return Rng(("similarity", seed, shape)).normal(*shape, dtype=F64)


@seeds
def test_gap_is_the_sum_written_out(seed: int) -> None:
    s, t = rows(seed, 4, 3), rows(seed, 4, 5)
    expected = sum(
        (F.cosine_similarity(s[i], s[j], dim=0) - F.cosine_similarity(t[i], t[j], dim=0)) ** 2
        for i in range(4)
        for j in range(4)
    )
    close(gram_gap(s, t), torch.as_tensor(expected) / 16)


@seeds
def test_gap_knows_neither_scales_nor_rotations_nor_orders_of_channels(seed: int) -> None:
    """0 for the same rows under each of them, whatever positive scale each row has."""
    s, t = rows(seed, 6, 4), rows(seed, 6, 9)
    turn, _ = torch.linalg.qr(rows(seed, 4, 4))
    scales = rows(seed, 6, 1).exp()
    for same in (scales * s, s @ turn, s[:, [2, 0, 3, 1]]):
        close(gram_gap(same, s), torch.zeros((), dtype=F64))
        close(gram_gap(same, t), gram_gap(s, t))
    assert gram_gap(s, t) > 1e-3 and gram_gap(-scales * s * s.sign(), t) != gram_gap(s, t)


def test_gap_teaches_the_student_alone() -> None:
    s, t = rows(0, 4, 3).requires_grad_(), rows(1, 4, 3).requires_grad_()
    gram_gap(s, t).backward()
    assert s.grad is not None and s.grad.abs().sum() > 0 and t.grad is None


@seeds
def test_class_gradients_are_those_of_autograd(seed: int) -> None:
    a, layer, y = rows(seed, 7, 4), nn.Linear(4, 5).double(), torch.arange(7) % 5
    F.cross_entropy(layer(a), y).backward()
    close(class_gradients(a, layer(a).detach(), y), layer.weight.grad)


@seeds
def test_the_losses_of_a_run_are_those_of_the_formulas(seed: int) -> None:
    x, y = rows(seed, 8, 4), torch.arange(8) % 3
    teacher, student = (nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3)).double() for width in (9, 5))
    a, b = (net[:2](x).detach() for net in (student, teacher))
    grads = [class_gradients(f, net(x).detach(), y) for f, net in ((a, student), (b, teacher))]
    objective = SampleSimilarity(pairs={"1": "1"}) + ClassSimilarity(pairs={"2:in": "2:in"})
    whole = Drawn(lambda n, rng: {"x": x, "y": y}, fields=("x", "y"))
    losses = next(iter(distill(teacher, student, objective, whole, steps=1, batch=8))).losses
    assert losses["samplesimilarity"] == pytest.approx(gram_gap(a, b).item())
    assert losses["classsimilarity"] == pytest.approx(gram_gap(*grads).item())


@pytest.mark.parametrize("kind", [SampleSimilarity, ClassSimilarity])
def test_a_network_that_is_its_teacher_learns_nothing(kind: type[SampleSimilarity]) -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    data = Dataset(x=rows(0, 8, 4), y=torch.arange(8) % 3)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    same = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    same.load_state_dict(state)
    run = distill(net, same, kind(pairs={"2:in": "2:in"}), data, steps=1, batch=8)
    assert next(iter(run)).losses[kind.__name__.lower()] == 0


def test_what_does_not_fit_is_refused() -> None:
    net, other = (nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)) for _ in range(2))
    x = torch.randn(8, 4)
    with pytest.raises(BadSetting, match="needs pairs of taps"):
        SampleSimilarity()
    with pytest.raises(Incompatible, match="SampleSimilarity needs a batch of 2 or more examples, got 1"):
        distill(net, other, SampleSimilarity(pairs={"1": "1"}), Dataset(x=x), steps=1, batch=1).finish()
    with pytest.raises(Incompatible, match=r"ClassSimilarity needs .*y"):
        distill(net, other, ClassSimilarity(pairs={"2:in": "2:in"}), Dataset(x=x), steps=1, batch=8)
    shares = Dataset(x=x, y=torch.full((8, 3), 1 / 3))
    with pytest.raises(Incompatible, match="ClassSimilarity needs labels y that are classes"):
        distill(net, other, ClassSimilarity(pairs={"2:in": "2:in"}), shares, steps=1, batch=8).finish()
