"""Slimmable networks and objectives on them, against weights that are cut out by hand and sums written out."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck import (
    SGD,
    CrossEntropy,
    Dataset,
    InPlaceKD,
    Objective,
    Rng,
    Slimmable,
    SlimmableTasks,
    WidthCrossEntropy,
    WidthInvariance,
    distill,
    ranked,
    taylor_scores,
)
from limbeck.engine import Prior
from limbeck.errors import BadSetting, Incompatible
from limbeck.evaluate.classification import multiply_adds
from limbeck.problems.digits_classify import DigitsClassify
from limbeck.recipes.k_arch.controllable_mtl_cikd import configured, network
from limbeck.recipes.k_arch.deps_ofa_shrinking import Delayed
from limbeck.rng import seeded
from tests.oracles.exact import F64, close, seeds


def perceptron() -> Slimmable:
    with seeded("perceptron"):
        return Slimmable(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).to(F64)


def convolutions() -> Slimmable:
    with seeded("convolutions"):
        layers = nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2, bias=False), nn.Flatten()
        return Slimmable(*layers, nn.Linear(36, 5), nn.Tanh(), nn.Linear(5, 3)).to(F64)


def data(n: int = 12) -> dict[str, Tensor]:
    rng = Rng(("widths",))
    return {"x": rng.normal(n, 4, dtype=F64), "y": rng.integers(n, 3)}


def change(objective: Objective, net: Slimmable | SlimmableTasks, **fields: Tensor) -> dict[str, Tensor]:
    """What one step of length 1 under an objective takes from each parameter, over all rows at once."""
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    one = Dataset(**{name: x[:1] for name, x in fields.items()})
    distill(None, net, objective, one, steps=1, batch=1, optim=SGD(lr=1.0), seed=3).finish()
    return {name: before[name] - p.detach() for name, p in net.named_parameters()}


def by_hand(net: nn.Module, value: Tensor) -> dict[str, Tensor]:
    """The gradient of a value by each parameter; 0 where there is none."""
    names, params = zip(*net.named_parameters(), strict=True)
    found = torch.autograd.grad(value, params, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, params, found, strict=True)}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name, value in one.items():
        close(value, other[name])


@seeds
def test_a_narrow_pass_is_that_of_the_first_channels_alone(seed: int) -> None:
    net, x = perceptron(), Rng(seed).normal(5, 4, dtype=F64)
    a, b, c = net.weighted
    h = F.relu(x @ a.weight[:4].T + a.bias[:4])
    h = F.relu(h @ b.weight[:2, :4].T + b.bias[:2])
    close(net(x, torch.tensor([0.5, 0.25])), h @ c.weight[:, :2].T + c.bias)  # 0.25·6 is rounded to 2


@pytest.mark.parametrize("shares", [(1.0, 1.0, 1.0), (0.5, 0.25, 0.4), (0.01, 0.99, 0.2)])
def test_what_is_cut_out_is_what_the_narrow_pass_gave(shares: tuple[float, ...]) -> None:
    net, x = convolutions(), Rng(0).normal(5, 1, 8, 8, dtype=F64)
    small = net.narrowed(shares)
    close(small(x), net(x, torch.tensor(shares)))
    assert [len(layer.weight) for layer in small if isinstance(layer, nn.Linear | nn.Conv2d)] == net.kept(shares)
    assert sum(p.numel() for p in small.parameters()) <= sum(p.numel() for p in net.parameters())


def test_at_full_width_all_is_kept() -> None:
    net, x = convolutions(), Rng(0).normal(5, 1, 8, 8, dtype=F64)
    close(net(x, net.widths(1.0)), net(x))


@seeds
def test_channels_in_another_order_compute_the_same(seed: int) -> None:
    net, rng = convolutions(), Rng(seed)
    x, scores = rng.normal(5, 1, 8, 8, dtype=F64), [rng.uniform(len(layer.weight)) for layer in net.weighted[:-1]]
    made = ranked(net, scores)
    close(made(x), net(x))
    first = scores[0].argmax()
    close(made.weighted[0].weight[0], net.weighted[0].weight[first])
    assert net.weighted[0].weight[0].ne(made.weighted[0].weight[0]).any() or first == 0


def test_taylor_scores_are_what_is_lost_to_first_order() -> None:
    """By a small share of each channel taken away, in place of all of it."""
    net, rng = perceptron(), Rng(1)
    x, y, small = rng.normal(9, 4, dtype=F64), rng.integers(9, 3), 1e-6
    scores = taylor_scores(net, x, y)
    for k in range(6):
        less = torch.ones(6, dtype=F64)
        less[k] -= small
        h = net.layers[2](F.relu(net.layers[0](x)))
        whole, without = (
            F.cross_entropy(net.layers[4](F.relu(h * scale)), y, reduction="none")
            for scale in (torch.ones_like(less), less)
        )
        assert (whole - without).abs().sum().item() / small == pytest.approx(scores[1][k].item(), rel=1e-3, abs=1e-6)


def test_tasks_have_shares_of_their_own() -> None:
    with seeded("tasks"):
        decoders = [Slimmable(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, n)).to(F64) for n in (3, 2)]
        encoder = Slimmable(nn.Linear(4, 8), nn.ReLU(), ends=True).to(F64)
    net, x = SlimmableTasks(encoder, decoders), data()["x"]
    out = net(x, torch.tensor([0.5, 0.5, 1.0]))
    narrow = encoder(x, (0.5,))
    assert narrow.shape == (12, 4)
    close(out[:, :3], decoders[0](narrow, (0.5,)))
    close(out[:, 3:], decoders[1](narrow, (1.0,)))


def test_narrow_passes_follow_the_full_width_which_does_not_move() -> None:
    """The gradient is that of the divergence with the full width's prediction as a number."""
    net, fields = perceptron(), data()
    x, t = fields["x"][:1], net(fields["x"][:1]).detach() / 2
    s = net(x, net.widths(0.5)) / 2
    value = 4 * (t.softmax(1) * (t.log_softmax(1) - s.log_softmax(1))).sum()
    expected = by_hand(net, value)
    got = change(InPlaceKD(widths=(0.5,), drawn=0, temperature=2.0), net, **fields)
    same(expected, got)
    assert not got["layers.0.weight"][4:].any() and got["layers.0.weight"][:4].any()  # what was not asked stays


def test_at_full_width_there_is_nothing_to_follow() -> None:
    for value in change(InPlaceKD(widths=(1.0,), drawn=0), perceptron(), **data()).values():
        close(value, torch.zeros_like(value))


def test_a_teacher_can_stand_in_for_the_full_width() -> None:
    net, other, fields = perceptron(), convolutions, data()
    with seeded("teacher"):
        other = nn.Linear(4, 3).to(F64)
    x, y = fields["x"][:1], other(fields["x"][:1]).softmax(1).detach()
    expected = by_hand(net, (y * (y.log() - net(x, net.widths(0.5)).log_softmax(1))).sum())
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    objective = InPlaceKD(widths=(0.5,), drawn=0, teacher="teacher")
    distill(other, net, objective, Dataset(x=x), steps=1, batch=1, optim=SGD(lr=1.0)).finish()
    same(expected, {name: before[name] - p.detach() for name, p in net.named_parameters()})


def test_cross_entropy_at_full_width_alone_is_cross_entropy() -> None:
    same(
        change(WidthCrossEntropy(widths=(1.0,), drawn=0), perceptron(), **data()),
        change(CrossEntropy(), perceptron(), **data()),
    )


def test_passes_count_alike() -> None:
    """The mean over widths, fixed ones here."""
    net, fields = perceptron(), data()
    x, y = fields["x"][:1], fields["y"][:1]
    values = [F.cross_entropy(net(x, net.widths(share)), y) for share in (0.25, 0.5, 1.0)]
    expected = by_hand(net, torch.stack(values).mean())
    same(expected, change(WidthCrossEntropy(widths=(0.25, 0.5, 1.0), drawn=0), net, **fields))


def test_tasks_are_softmaxes_of_their_own() -> None:
    net, fields = perceptron(), data()
    x, y = fields["x"][:1], torch.tensor([[1, 0]])
    out = net(x, net.widths(0.5))
    expected = by_hand(net, (F.cross_entropy(out[:, :2], y[:, 0]) + F.cross_entropy(out[:, 2:], y[:, 1])) / 2)
    got = change(WidthCrossEntropy(widths=(0.5,), drawn=0, tasks=(2, 1)), net, x=x, y=y)
    same(expected, got)


def test_invariance_compares_the_first_channels_with_numbers() -> None:
    net, fields = perceptron(), data()
    x = fields["x"][:1]
    first = [F.relu(layer) for layer in (net.layers[0](x), x @ net.layers[0].weight[:4].T + net.layers[0].bias[:4])]
    second = F.relu(net.layers[2](first[0])), F.relu(first[1] @ net.layers[2].weight[:3, :4].T + net.layers[2].bias[:3])
    n, f = second[1][0], second[0][0, :3].detach()
    value = 1 - n @ f / (n.norm() * f.norm())
    expected = by_hand(net, value)
    same(expected, change(WidthInvariance(widths=(0.5,), drawn=0, taps=("layers.3",)), net, **fields))


def test_objectives_of_one_least_width_draw_the_same_ones() -> None:
    """The sum of two losses asks the student for two passes besides the full one, not four."""
    net, asked = perceptron(), list[object]()
    net.register_forward_hook(lambda module, args, kwargs, out: asked.append(kwargs.get("shares")), with_kwargs=True)
    objective = CrossEntropy() + WidthCrossEntropy() + InPlaceKD() + WidthInvariance(taps=("layers.3",))
    run = distill(None, net, objective, Dataset(**data()), steps=1, batch=4)
    asked.clear()
    run.tick()
    assert len(asked) == 3
    drawn = [shares for shares in asked if isinstance(shares, Tensor)][-1]
    assert ((drawn >= 0.25) & (drawn <= 1)).all() and drawn.unique().numel() == 2  # each layer by itself


def test_mistakes_are_refused() -> None:
    with pytest.raises(Incompatible, match=r"Slimmable needs layers that can be cut, got BatchNorm2d.*would fit"):
        Slimmable(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(Incompatible, match="needs layers that can be cut"):
        Slimmable(nn.Conv2d(4, 4, 3, groups=4))
    with pytest.raises(BadSetting, match="number of shares"):
        perceptron()(data()["x"], torch.tensor([0.5]))
    with pytest.raises(BadSetting, match="a share of channels"):
        perceptron()(data()["x"], torch.tensor([0.5, 1.5]))
    with pytest.raises(BadSetting, match="needs widths"):
        InPlaceKD(widths=())
    with pytest.raises(BadSetting, match="a width"):
        InPlaceKD(widths=(0.0,))
    with pytest.raises(BadSetting, match="temperature"):
        InPlaceKD(temperature=0)
    with pytest.raises(BadSetting, match="needs taps"):
        WidthInvariance()
    with pytest.raises(Incompatible, match="needs a student that is an Elastic, got a Linear"):
        distill(None, nn.Linear(4, 3), InPlaceKD(), Dataset(**data()), steps=1)
    wrong = WidthCrossEntropy(tasks=(2, 2))
    with pytest.raises(Incompatible, match=r"needs a student with 4 outputs for tasks of \(2, 2\) classes, got 3"):
        distill(None, perceptron(), wrong, Dataset(**data()), steps=1, batch=4).finish()


def test_delayed_losses_count_by_epsilon_once_they_begin() -> None:
    """Before the start a tick has no narrow pass; at it, by gradient descent, a learning rate of ε counts."""
    begun, late = (Delayed(start=start, until=1.0, epsilon=0.2) for start in (0.0, 0.5))
    narrow = InPlaceKD(widths=(0.5,), drawn=0)
    alone = change(narrow, perceptron(), **data())
    same({name: 0.2 * value for name, value in alone.items()}, change(begun * narrow, perceptron(), **data()))
    assert late(0.49) == 0 and late(0.5) == 0.2 and late(0.75) == pytest.approx(0.6) and late(1.0) == 1
    net, asked = perceptron(), list[object]()
    net.register_forward_hook(lambda *seen: asked.append(seen[0]))
    run = distill(None, net, CrossEntropy() + late * narrow, Dataset(**data()), steps=4, batch=4)
    asked.clear()
    counts = [(run.tick(), len(asked), asked.clear())[1] for _ in range(4)]
    assert counts == [1, 1, 2, 2]
    with pytest.raises(BadSetting, match="until"):
        Delayed(start=0.5, until=0.4)


@pytest.mark.parametrize("budget", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("preference", [(1.0, 0.25), (0.25, 1.0), (1.0, 1.0)])
def test_widths_keep_the_budget_and_the_preference(budget: float, preference: tuple[float, float]) -> None:
    problem = DigitsClassify()
    net, x = network(problem, Prior(Path())), problem.heldout[0]
    shares = configured(net, x, budget, preference)
    encoder, _, one, other = shares.tolist()
    assert multiply_adds(net.at(shares), x[:1]) <= budget * multiply_adds(net, x[:1])
    assert (one - other) * (preference[0] - preference[1]) >= 0 and (one == other) == (preference[0] == preference[1])
    assert (
        multiply_adds(net.at(torch.tensor([encoder + 0.25] * 2 + [one, other]).clamp_max(1)), x[:1])
        > budget * (multiply_adds(net, x[:1]))
        or encoder == 1
    )
    with pytest.raises(BadSetting, match="a budget must be"):
        configured(net, x, 0.01, preference)


def test_channels_are_ranked_by_a_score_of_each_hidden_layer() -> None:
    net = Slimmable(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    for scores in ([], [torch.arange(8.0)] * 2):
        with pytest.raises(BadSetting, match="the number of layers with scores must be between 1 and 1"):
            ranked(net, scores)
