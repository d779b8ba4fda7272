"""Objectives on logits and features against sums written out, brute force, and what must not change them."""

import copy
import math
import pickle
from dataclasses import dataclass, replace
from itertools import permutations
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from scipy.optimize import linear_sum_assignment, linprog
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, kl_divergence
from torch.nn import functional as F

from limbeck import (
    DKD,
    EMA,
    KD,
    OFA,
    PLD,
    SGD,
    BalancedDivergence,
    Claim,
    ConfidenceWeighted,
    CrossEntropy,
    Dataset,
    FitNets,
    JensenShannonKD,
    LumiNet,
    Mixup,
    Mutual,
    Objective,
    Orthogonal,
    PermutedTeacher,
    Projection,
    Rng,
    SinKD,
    adaptive_target,
    balanced_kl,
    confidence_weights,
    distill,
    entropy,
    jensen_shannon,
    perceived,
    permuted,
    plackett_luce,
    rest_kl,
    reverse_kl,
    sinkhorn,
    sinkhorn_distance,
    soft_kl,
    target_kl,
)
from limbeck.engine.tick import Tick
from limbeck.errors import BadSetting, Incompatible
from limbeck.evaluate.classification import calibration_error, multiply_adds
from limbeck.objectives.networks.projectors import resized
from limbeck.problems.networks import MLP, ViT
from tests.oracles.exact import F64, close, gradient, seeds, tensor

temperatures = pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])


def logits(seed: int, n: int = 6, classes: int = 5, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    rng = Rng(("networks", seed))
    s, t = (scale * rng.normal(n, classes, dtype=F64) for _ in range(2))
    return s, t, rng.integers(n, classes)


def given(**batch: Tensor) -> Tick:
    """A tick of which a loss looks at the batch alone."""
    return cast(Tick, SimpleNamespace(batch=batch))


# DKD


@seeds
@temperatures
def test_dkd_parts_are_the_divergences_of_torch(seed: int, temperature: float) -> None:
    s, t, y = logits(seed)
    p, q = (F.softmax(z / temperature, 1).gather(1, y[:, None])[:, 0] for z in (t, s))
    close(target_kl(s, t, y, temperature=temperature), temperature**2 * kl_divergence(Bernoulli(p), Bernoulli(q)))
    for i in range(len(y)):
        rest = [z[i][torch.arange(5) != y[i]] / temperature for z in (t, s)]
        expected = temperature**2 * kl_divergence(*(Categorical(logits=z) for z in rest))
        close(rest_kl(s, t, y, temperature=temperature)[i], expected)


@seeds
@temperatures
def test_kd_is_dkd_under_the_teachers_own_weight(seed: int, temperature: float) -> None:
    """KL = target + (1 − p_y)·rest, p_y the teacher's (arXiv 2203.08679)."""
    s, t, y = logits(seed)
    p = (t / temperature).softmax(1).gather(1, y[:, None])[:, 0]
    parts = [f(s, t, y, temperature=temperature) for f in (target_kl, rest_kl)]
    close(parts[0] + (1 - p) * parts[1], soft_kl(s, t, temperature=temperature))


def test_dkd_is_finite_where_the_label_has_all_of_the_probability() -> None:
    """Logarithms of summed probabilities would be of a rounded 0 here."""
    s, t, y = torch.tensor([[300.0, 0, 0], [0, 300.0, 0]]), torch.tensor([[200.0, 0, 1], [500.0, 0, 1]]), torch.zeros(2)
    s.requires_grad_()
    value = DKD(temperature=1.0).value(s, t, given(y=y.long()))
    value.sum().backward()
    assert value.isfinite().all() and s.grad is not None and s.grad.isfinite().all()


def test_dkd_refuses_two_classes() -> None:
    data = Dataset(x=torch.randn(8, 4), y=torch.arange(8) % 2)
    with pytest.raises(Incompatible, match=r"DKD needs three or more classes, got 2; KD\(\) would fit"):
        distill(nn.Linear(4, 2), nn.Linear(4, 2), DKD(), data, steps=1, batch=8).finish()


# PLD


@seeds
def test_plackett_luce_by_brute_force(seed: int) -> None:
    """exp(−Σ_k (LSE − s)) is the probability to draw this order without replacement: it sums to 1 over all orders."""
    s, _, _ = logits(seed, n=1, classes=4)
    total = 0.0
    for order in permutations(range(4)):
        left, p = list(order), 1.0
        for k in order:
            p *= (s[0, k].exp() / s[0, left].exp().sum()).item()
            left.remove(k)
        total += p
    assert total == pytest.approx(1, abs=1e-12)


@seeds
@temperatures
def test_pld_is_the_sum_written_out(seed: int, temperature: float) -> None:
    s, t, y = logits(seed)
    a = (t / temperature).softmax(1)
    for i in range(len(s)):
        order = [int(y[i]), *(k for k in t[i].argsort(descending=True).tolist() if k != y[i])]
        terms = [a[i, k] * (s[i, order[j:]].logsumexp(0) - s[i, k]) for j, k in enumerate(order)]
        close(plackett_luce(s, t, y, temperature=temperature)[i], torch.stack(terms).sum())


@seeds
def test_pld_does_not_know_a_constant_and_is_convex(seed: int) -> None:
    s, t, y = logits(seed, n=1)
    close(plackett_luce(s + 5, t, y), plackett_luce(s, t, y))
    hessian = torch.autograd.functional.hessian(lambda s: plackett_luce(s[None], t, y).sum(), s[0])
    assert torch.linalg.eigvalsh(hessian).min() > -1e-12


@seeds
def test_pld_of_a_sure_teacher_is_cross_entropy(seed: int) -> None:
    s, _, y = logits(seed)
    close(plackett_luce(s, 1e4 * F.one_hot(y, 5).double(), y), F.cross_entropy(s, y, reduction="none"))


def test_pld_is_stable_in_float32() -> None:
    s, t, y = (x.float() if x.is_floating_point() else x for x in logits(0, n=64, classes=100, scale=30.0))
    exact = plackett_luce(s.double(), t.double(), y)
    torch.testing.assert_close(plackett_luce(s, t, y).double(), exact, rtol=1e-4, atol=1e-4)


# Sinkhorn


@seeds
def test_sinkhorns_marginals_are_uniform(seed: int) -> None:
    plan = sinkhorn(Rng(("plan", seed)).uniform(6, 6), blur=0.1, rounds=200)
    close(plan.sum(0), torch.full((6,), 1 / 6, dtype=F64), 1e-10)
    close(plan.sum(1), torch.full((6,), 1 / 6, dtype=F64), 1e-4)


@seeds
def test_a_sharp_plan_is_the_best_assignment(seed: int) -> None:
    cost = Rng(("plan", seed)).uniform(7, 7)
    plan = sinkhorn(cost, blur=0.002, rounds=2000)
    best = cost[linear_sum_assignment(cost.numpy())].mean()
    assert (plan * cost).sum().item() == pytest.approx(best.item(), rel=0.01)


@seeds
def test_an_oblong_plan_is_the_best_one_of_a_linear_programme(seed: int) -> None:
    cost = Rng(("plan", seed)).uniform(3, 5)
    rows = torch.kron(torch.eye(3), torch.ones(1, 5))
    columns = torch.kron(torch.ones(1, 3), torch.eye(5))
    found = linprog(cost.flatten().numpy(), A_eq=torch.cat([rows, columns]).numpy(), b_eq=[1 / 3] * 3 + [1 / 5] * 5)
    plan = sinkhorn(cost, blur=0.002, rounds=4000)
    assert (plan * cost).sum().item() == pytest.approx(found.fun, rel=0.01)


@seeds
def test_the_plan_is_optimal_under_its_entropy(seed: int) -> None:
    """ln P + cost/blur is a sum of what depends on the row and what depends on the column."""
    cost, blur = Rng(("plan", seed)).uniform(5, 5), 0.3
    dual = sinkhorn(cost, blur=blur, rounds=100).log() + cost / blur
    close(dual - dual.mean(0) - dual.mean(1, keepdim=True) + dual.mean(), torch.zeros(5, 5, dtype=F64), 1e-9)


def test_sinkhorn_has_a_gradient_where_predictions_do_not_overlap() -> None:
    """Both predictions are sure, and differ: KL's gradient by probabilities explodes, by logits it is what it is."""
    s, t = tensor([0.0, 6.0]), tensor([6.0, 0.0])
    (g,) = gradient(lambda s: sinkhorn_distance(s, t), s)
    apart = (s.softmax(1) - t.softmax(1)).abs().sum()
    close(sinkhorn_distance(s, t), apart)
    assert g.norm() > 0


def test_the_temperature_counts_and_so_does_the_batchs_size() -> None:
    """The released code has T = 2 whatever it is told, and its sum over a batch grows with it."""
    s, t, _ = logits(0)
    one, hot = sinkhorn_distance(s, t), sinkhorn_distance(s, t, temperature=4.0)
    assert not torch.allclose(one, hot)
    twice = [torch.cat([z, z]) for z in (s, t)]
    close(sinkhorn_distance(*twice, rounds=200), sinkhorn_distance(s, t, rounds=200), 1e-6)


# LumiNet


@seeds
def test_perception_does_not_know_scale_and_shift_of_a_class(seed: int) -> None:
    s, _, _ = logits(seed, n=32)
    rng = Rng(("affine", seed))
    a, b = 1 + rng.uniform(5), rng.normal(5, dtype=F64)
    close(perceived(a * s + b, eps=0.0), perceived(s, eps=0.0))
    close(perceived(s, eps=0.0).mean(0), torch.zeros(5, dtype=F64), 1e-12)
    close(perceived(s, eps=0.0).var(0, correction=0), torch.ones(5, dtype=F64))


@seeds
@temperatures
def test_luminet_is_kd_of_what_is_perceived(seed: int, temperature: float) -> None:
    s, t, _ = logits(seed)
    h, g = ((z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in (s, t))
    kl = kl_divergence(Categorical(logits=g / temperature), Categorical(logits=h / temperature))
    close(LumiNet(temperature=temperature).value(s, t, given()), temperature**2 * kl.mean())


# Jensen-Shannon


@seeds
def test_jensen_shannon_is_symmetric_bounded_and_zero_for_equals(seed: int) -> None:
    s, t, _ = logits(seed)
    value = jensen_shannon(s, t)
    m = [Categorical(probs=(s.softmax(1) + t.softmax(1)) / 2)]
    halves = [kl_divergence(Categorical(logits=z), m[0]) for z in (s, t)]
    close(value, (halves[0] + halves[1]) / 2)
    close(value, jensen_shannon(t, s))
    close(jensen_shannon(s, s + 3), torch.zeros(6, dtype=F64), 1e-15)
    assert jensen_shannon(100 * s, -100 * s).max() <= math.log(2) + 1e-12


# Features


def nets() -> tuple[nn.Module, nn.Module, Dataset]:
    torch.manual_seed(0)
    teacher, student = (nn.Sequential(nn.Linear(4, n), nn.Tanh(), nn.Linear(n, 3)).double() for n in (6, 5))
    return teacher, student, Dataset(x=Rng("x").normal(32, 4, dtype=F64), y=torch.arange(32) % 3)


def test_hints_are_the_mean_square_of_projected_features() -> None:
    teacher, student, data = nets()
    run = distill(teacher, student, FitNets(pairs={"1": "1"}), data, steps=1, batch=8)
    x = data.take(8, Rng((0, 0, "data"), part=slice(0, 8), total=8))["x"]
    projector = run.cast.roles["fitnets projector 1 → 1"].module[0]
    with torch.no_grad():
        expected = ((projector(student[:2](x)) - teacher[:2](x)) ** 2).mean()
    assert run.tick().losses["fitnets"] == pytest.approx(expected.item(), rel=1e-12)


def test_student_and_teacher_are_asked_once_for_all_losses() -> None:
    teacher, student, data = nets()
    asked = {"teacher": 0, "student": 0}

    def count(who: str) -> None:
        asked[who] += 1

    objective = KD() + FitNets(pairs={"1": "1"}) + DKD() + CrossEntropy() + PLD() + 0.1 * SinKD()
    run = distill(teacher, student, objective, data, steps=3, batch=8)
    teacher.register_forward_hook(lambda *_: count("teacher"))
    student.register_forward_hook(lambda *_: count("student"))
    run.finish()
    assert asked == {"teacher": 3, "student": 3}


def test_an_orthogonal_projector_keeps_inner_products_while_it_learns() -> None:
    teacher, student, data = nets()
    run = distill(teacher, student, FitNets(pairs={"1": "1"}, projector=Orthogonal()), data, steps=50, batch=8)
    first = next(iter(run)).losses["fitnets"]
    last = [step.losses["fitnets"] for step in run][-1]
    projector = run.cast.roles["fitnets projector 1 → 1"].module[0]
    x = Rng("z").normal(7, 5, dtype=F64)
    with torch.no_grad():
        close(projector(x) @ projector(x).T, x @ x.T, 1e-9)
    assert last < first and run.cast.roles["fitnets projector 1 → 1"].steps == 50


def test_an_orthogonal_projector_refuses_more_channels_than_the_teacher_has() -> None:
    teacher, student, data = nets()
    with pytest.raises(Incompatible, match=r"Orthogonal\(\) needs at most the teacher's 5 channels, got 6"):
        distill(student, teacher, FitNets(pairs={"1": "1"}, projector=Orthogonal()), data, steps=1)


def test_a_wrong_tap_names_the_nearest() -> None:
    teacher, student, data = nets()
    with pytest.raises(Incompatible, match=r"tap needs a submodule 'one', got a Sequential without it"):
        distill(teacher, student, FitNets(pairs={"1": "one"}), data, steps=1)
    with pytest.raises(BadSetting, match="FitNets needs pairs of taps"):
        FitNets()


@pytest.mark.parametrize(
    ("shape", "to"),
    [((8, 4, 4), (6, 2, 2)), ((8, 2, 2), (6, 4, 4)), ((8, 4, 4), (16, 6)), ((16, 8), (6, 4, 4)), ((8, 4, 4), (6,))],
)
def test_projections_reach_the_teachers_shape(shape: tuple[int, ...], to: tuple[int, ...]) -> None:
    made = Projection(layers=2).build(torch.Size((2, *shape)), torch.Size((2, *to)))
    assert made(torch.randn(3, *shape)).shape == (3, *to)


def test_tokens_of_a_map_are_its_places_row_by_row() -> None:
    x = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    tokens = resized(x, torch.Size((2, 16, 9)))
    assert torch.equal(tokens[:, 5], x[:, :, 1, 1]) and torch.equal(resized(tokens, torch.Size((2, 9, 4, 4))), x)


# OFA


@seeds
@temperatures
def test_ofa_at_one_is_soft_cross_entropy(seed: int, temperature: float) -> None:
    s, t, y = logits(seed)
    soft = -((t / temperature).softmax(1) * (s / temperature).log_softmax(1)).sum(1)
    close(adaptive_target(s, t, y, temperature=temperature), soft, 1e-12)


@seeds
def test_ofa_counts_the_label_more_as_its_exponent_grows(seed: int) -> None:
    """The weight of −ln p_y is (p_y + 1)^γ − 1, that of another class p_c^γ, each written out."""
    s, t, y = logits(seed)
    p = t.softmax(1)
    last = torch.zeros(len(y), dtype=F64)
    for gamma in (1.0, 1.2, 1.5, 2.0):
        (g,) = gradient(lambda z: adaptive_target(s + z, t, y, gamma=gamma).sum(), torch.zeros_like(s))  # noqa: B023
        weights = p**gamma
        weights[range(6), y] = (p[range(6), y] + 1) ** gamma - 1
        close(g, weights.sum(1, keepdim=True) * s.softmax(1) - weights)
        assert (weights[range(6), y] > last).all()
        last = weights[range(6), y]


def test_exits_learn_and_are_told_apart() -> None:
    teacher, student, data = nets()
    run = distill(teacher, student, OFA(taps=("0", "1"), gamma=(1.2, 1.4)), data, steps=2, batch=8)
    before = [p.detach().clone() for p in run.cast.roles["exits at 0, 1"].module.parameters()]
    run.finish()
    after = run.cast.roles["exits at 0, 1"].module.parameters()
    assert all(not torch.equal(a, b) for a, b in zip(after, before, strict=True))
    with pytest.raises(BadSetting, match="OFA needs an exponent for each of 2 taps, got 1"):
        OFA(taps=("0", "1"), gamma=(1.2,))


# Born-again


@seeds
def test_permuting_keeps_the_greatest_and_the_set(seed: int) -> None:
    p = logits(seed, n=64)[1].softmax(1)
    moved = permuted(p, Rng(("order", seed)).uniform(*p.shape))
    first = p.argmax(1, keepdim=True)
    assert torch.equal(moved.gather(1, first), p.gather(1, first))
    assert torch.equal(moved.sort(1).values, p.sort(1).values) and not torch.equal(moved, p)


def test_every_order_of_the_rest_is_as_likely() -> None:
    p = tensor([0.4, 0.3, 0.2, 0.1]).expand(24_000, 4)
    moved = permuted(p, Rng("orders").uniform(24_000, 4))
    counts = moved[:, 1:].unique(dim=0, return_counts=True)[1]
    assert len(counts) == 6 and (counts.double() / 4000 - 1).abs().max() < 5 / 4000**0.5


@seeds
def test_confidence_weights_sum_to_one_and_are_even_for_an_even_teacher(seed: int) -> None:
    _, t, _ = logits(seed)
    weights = confidence_weights(t)
    close(weights.sum(), tensor(1.0)[0], 1e-12)
    close(weights, t.softmax(1).amax(1) / t.softmax(1).amax(1).sum())
    close(confidence_weights(t[0].repeat(6, 1).roll(0, 1)), torch.full((6,), 1 / 6, dtype=F64))


def test_a_born_again_line_is_ridge_regression_of_its_own_shrinkage() -> None:
    """In the linear case generation k multiplies each singular direction by (s²/(s² + λ))^k of the first targets."""
    rng, ridge = Rng("lines"), 3.0
    x, y = rng.normal(30, 4, dtype=F64), rng.normal(30, 1, dtype=F64)
    u, s, _ = torch.linalg.svd(x, full_matrices=False)
    target = y
    for k in range(1, 4):
        w = torch.linalg.solve(x.T @ x + ridge * torch.eye(4, dtype=F64), x.T @ target)
        target = x @ w  # what the next generation learns from
        close(target, u @ ((s**2 / (s**2 + ridge)) ** k)[:, None].mul(u.T @ y), 1e-10)


# Online


@seeds
def test_balanced_divergence_is_the_mean_of_both_at_equal_entropies(seed: int) -> None:
    _, t, _ = logits(seed)
    s = t.roll(1, 1)  # the same entropies
    close(balanced_kl(s, t), soft_kl(s, t) + reverse_kl(s, t))
    close(reverse_kl(s, t), soft_kl(t, s))


@seeds
def test_a_surer_student_is_spread_by_the_reverse_divergence(seed: int) -> None:
    s, t, _ = logits(seed)
    t = t / 8
    forward, reverse = soft_kl(8 * s, t), reverse_kl(8 * s, t)
    a = (entropy(t) - entropy(8 * s)).sigmoid()
    assert (a > 0.5).all()
    close(balanced_kl(8 * s, t), 2 * ((1 - a) * forward + a * reverse))


def test_peers_learn_from_where_the_other_stood() -> None:
    """Both gradients are those of the losses written out at the tick's start, and neither moves the other."""
    _, one, data = nets()
    other = copy.deepcopy(one)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(-1.3)
    x = data.take(8, Rng((0, 0, "data"), part=slice(0, 8), total=8))
    s, t = one(x["x"]), other(x["x"])
    hard = [F.cross_entropy(z, x["y"]) for z in (s, t)]
    goals = [hard[0] + balanced_kl(s, t).mean(), hard[1] + reverse_kl(t, s).mean()]
    wanted = [torch.autograd.grad(goal, [*net.parameters()]) for goal, net in zip(goals, (one, other), strict=True)]
    run = distill(
        None, {"student": one, "peer": other}, BalancedDivergence(), data, steps=1, batch=8, optim=SGD(lr=1.0)
    )
    before = [[p.detach().clone() for p in net.parameters()] for net in (one, other)]
    run.finish()
    for net, start, grads in zip((one, other), before, wanted, strict=True):
        for p, a, g in zip(net.parameters(), start, grads, strict=True):
            close(a - p.detach(), g, 1e-10)


# What a run makes of them


def noted() -> tuple[nn.Module, list[str]]:
    """A network with running statistics, and a list that grows with its passes."""
    net, passes = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)), list[str]()
    net.register_forward_hook(lambda *_: passes.append("one"))
    return net, passes


def points() -> Dataset:
    return Dataset(x=Rng("points").normal(32, 4), y=torch.arange(32) % 3)


def test_peers_are_asked_once_whoever_asks_first() -> None:
    (one, ones), (other, others) = noted(), noted()
    distill(None, {"student": one, "peer": other}, Mutual(), points(), steps=3, batch=8).finish()
    assert len(ones) == len(others) == 3
    assert one[1].num_batches_tracked == other[1].num_batches_tracked == 3


def test_a_peer_of_the_students_own_name_is_refused() -> None:
    with pytest.raises(BadSetting, match="the peer needs a name of its own"):
        Mutual(peer="student")


def test_compiled_networks_learn_as_plain_ones_do() -> None:
    ends = []
    for wrap in (lambda net: net, lambda net: torch.compile(net, backend="eager")):
        torch.manual_seed(0)
        teacher, student = noted()[0], noted()[0]
        objective = KD() + FitNets(pairs={"0": "0"})
        distill(wrap(teacher), wrap(student), objective, points(), steps=3, batch=8).finish()
        ends.append(student[0].weight)
    torch.testing.assert_close(*ends)


def test_the_moving_average_is_free_of_hooks_that_write() -> None:
    run = distill(
        noted()[0], MLP(size=4, classes=3), FitNets(pairs={"head": "3"}), points(), steps=2, batch=8, ema=EMA()
    )
    student = run.finish()
    assert pickle.loads(pickle.dumps(student)) is not None
    taps = run.cast.taps["student"]
    with taps:
        student(torch.zeros(1, 4))
    with pytest.raises(Incompatible, match="needs a pass of its module"):
        taps["head"]


def test_two_hints_add() -> None:
    objective = FitNets(pairs={"0": "0"}) + FitNets(pairs={"2": "2"}, projector=Orthogonal())
    run = distill(noted()[0], noted()[0], objective, points(), steps=2, batch=8)
    assert sorted(next(iter(run)).norms) == ["fitnets projector 0 → 0", "fitnets projector 2 → 2", "student"]


def test_features_are_compared_in_float32_under_autocast() -> None:
    seen = []

    @dataclass(frozen=True, kw_only=True)
    class Noted(FitNets):
        def value(self, student: Tensor, teacher: Tensor, tick: Tick) -> Tensor:
            seen.extend([student.dtype, teacher.dtype, (student @ student.T).dtype])
            return super().value(student, teacher, tick)

    settings = {"steps": 1, "batch": 8, "autocast": torch.bfloat16}
    distill(noted()[0], noted()[0], Noted(pairs={"2": "2"}), points(), **settings).finish()
    assert seen == [torch.float32] * 3


def test_weights_by_confidence_are_those_of_the_whole_batch() -> None:
    """Cut into micro-batches, nothing changes but rounding."""
    ends = []
    for accumulate in (1, 4):
        teacher, student, data = nets()
        settings = {"steps": 3, "batch": 16, "accumulate": accumulate}
        distill(teacher, student, ConfidenceWeighted(), data, **settings).finish()
        ends.append(student[0].weight)
    close(*ends, 1e-10)
    teacher, student, data = nets()
    run = distill(teacher, student, ConfidenceWeighted(), data, steps=1, batch=8)
    batch = data.take(8, Rng((0, 0, "data"), part=slice(0, 8), total=8))
    loss = F.cross_entropy(student(batch["x"]), batch["y"], reduction="none")
    expected = (confidence_weights(teacher(batch["x"])) * loss).sum().item()
    assert run.tick().losses["confidenceweighted"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("objective", [DKD(), PLD(), ConfidenceWeighted(), OFA(taps=("0",))], ids=repr)
def test_mixed_labels_are_refused_where_classes_are_needed(objective: Objective) -> None:
    run = distill(noted()[0], noted()[0], objective, Mixup(points(), classes=3), steps=1, batch=8)
    with pytest.raises(Incompatible, match="needs labels y that are classes, got y of shape"):
        run.finish()


def test_other_numbers_of_classes_are_refused() -> None:
    for objective in (KD(alpha=1.0), PermutedTeacher(), OFA(taps=("0",))):
        with pytest.raises(Incompatible, match="needs a student with 5 classes, got 3"):
            distill(nn.Linear(4, 5), noted()[0], objective, points(), steps=1, batch=8).finish()


def test_globs_are_refused_where_one_place_is_meant() -> None:
    with pytest.raises(Incompatible, match=r"FitNets needs one submodule for each tap, got 4 for '\*'"):
        distill(noted()[0], noted()[0], FitNets(pairs={"*": "0"}), points(), steps=1, batch=8)
    with pytest.raises(BadSetting, match="OFA needs taps of the student"):
        OFA()


# Mixtures, claims and figures


def test_mixtures_are_between_two_examples_however_the_batch_is_cut() -> None:
    x, y = Rng("mix").normal(6, 4), torch.arange(6) % 3
    source = Mixup(Dataset(x=x, y=y), classes=3)
    whole = source.take(8, Rng(0, part=slice(0, 8), total=8))
    parts = [source.take(4, Rng(0, part=slice(k, k + 4), total=8)) for k in (0, 4)]
    for name in ("x", "y"):
        assert torch.equal(whole[name], torch.cat([part[name] for part in parts]))
    torch.testing.assert_close(whole["y"].sum(1), torch.ones(8))
    for row in whole["x"]:
        assert min((row - a).norm() + (row - b).norm() - (a - b).norm() for a in x for b in x) < 1e-5  # on a line
    with pytest.raises(Incompatible, match="Mixup needs a source of x and y, got one without y"):
        Mixup(Dataset(x=x), classes=3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_figure_that_is_no_number_fails_a_claim(bad: float) -> None:
    each = Claim(text="", check=lambda trial: 0.0, bound=1.0, on="quick")
    for claim in (each, replace(each, mean=True)):
        assert claim.holds([0.5, 0.9])
        assert not any(claim.holds(row) for row in ([bad, 0.5], [0.5, bad], [0.5, bad, 0.5]))
    assert not each.holds([0.5, 1.2]) and replace(each, mean=True).holds([0.5, 1.2])


def test_calibration_error_by_hand() -> None:
    """Two of four right at .9 (one bin) and one of one at .6: (4·.4 + 1·.4)/5."""
    p = torch.tensor([[0.9, 0.1]] * 4 + [[0.6, 0.4]])
    assert calibration_error(p, torch.tensor([0, 0, 1, 1, 0])) == pytest.approx((4 * 0.4 + 0.4) / 5, abs=1e-6)
    assert calibration_error(p, torch.tensor([0, 0, 1, 1, 0]), bins=1) == pytest.approx(abs(0.84 - 0.6), abs=1e-6)


def test_multiply_adds_count_attention_too() -> None:
    """A block: 4·N·w² of the projections, 4·N·w² of the perceptron, 2·N²·w of the attention; patches and head."""
    n, w, blocks = 16, 32, 3
    expected = blocks * (8 * n * w * w + 2 * n * n * w) + n * 4 * w + w * 10
    assert multiply_adds(ViT(size=8, classes=10).eval(), torch.zeros(1, 1, 8, 8)) == expected


# Objectives are their losses, with their weights


@seeds
def test_dkd_weighs_label_and_rest(seed: int) -> None:
    s, t, y = logits(seed)
    parts = [f(s, t, y, temperature=2.0) for f in (target_kl, rest_kl)]
    close(DKD(alpha=2.0, beta=3.0, temperature=2.0).value(s, t, given(y=y)), 2 * parts[0] + 3 * parts[1])


@seeds
def test_the_label_free_objective_is_the_divergence(seed: int) -> None:
    s, t, _ = logits(seed)
    close(JensenShannonKD().value(s, t, given()), jensen_shannon(s, t))


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_peers_follow_the_divergence_from_each_other(weight: float) -> None:
    s, t, _ = logits(0)
    objective = Mutual(weight=weight)
    for own, other, who in ((s, t, "student"), (t, s, "peer")):
        close(objective.towards(own, other, who), kl_divergence(Categorical(logits=other), Categorical(logits=own)))
    one, two, data = (*nets()[:2], nets()[2])
    x = data.take(8, Rng((0, 0, "data"), part=slice(0, 8), total=8))
    own, other = one(x["x"]), two(x["x"])
    expected = F.cross_entropy(own, x["y"]) + weight * soft_kl(own, other).mean()
    run = distill(None, {"student": one, "peer": two}, objective, data, steps=1, batch=8)
    assert run.tick().losses["mutual student"] == pytest.approx(expected.item(), rel=1e-12)


def test_a_shuffled_teacher_is_followed_by_cross_entropy() -> None:
    """Of a teacher that is as unsure of all other classes the order of these does not matter."""
    teacher, student, data = nets()
    with torch.no_grad():
        teacher[2].weight.zero_()
        teacher[2].bias.copy_(tensor(2.0, 0.5, 0.5))
    p = teacher[2].bias.detach().softmax(0)
    x = data.take(8, Rng((0, 0, "data"), part=slice(0, 8), total=8))["x"]
    expected = -(p * student(x).log_softmax(1)).sum(1).mean().item()
    run = distill(teacher, student, PermutedTeacher(), data, steps=1, batch=8)
    assert run.tick().losses["permutedteacher"] == pytest.approx(expected, rel=1e-12)


# who learns from whom


def test_a_loss_follows_the_teacher_that_it_names() -> None:
    teacher, student, data = nets()
    second = copy.deepcopy(student)
    own = {"teacher": teacher, "second": second}
    run = distill(own, student, KD(alpha=1.0, teacher="second") + KD(alpha=1.0), data, steps=1, batch=8)
    losses = next(iter(run)).losses
    assert sorted(losses) == ["kd", "kd second"]
    assert losses["kd second"] == 0 < losses["kd"]


def test_mutual_learning_is_the_sum_of_its_parts() -> None:
    one, other, data = nets()
    ends = []
    for objective in (
        Mutual(),
        CrossEntropy() + KD(alpha=1.0, temperature=1.0, teacher="peer")
        + CrossEntropy(student="peer") + KD(alpha=1.0, temperature=1.0, student="peer", teacher="student"),
    ):  # fmt: skip
        both = {"student": copy.deepcopy(one).requires_grad_(), "peer": copy.deepcopy(other).requires_grad_()}
        distill(None, both, objective, data, steps=3, batch=8).finish()
        ends.append([p.detach() for net in both.values() for p in net.parameters()])
    for mine, theirs in zip(*ends, strict=True):
        close(mine, theirs, tolerance=1e-6)


def test_a_name_that_nobody_bears_is_refused() -> None:
    teacher, student, data = nets()
    with pytest.raises(Incompatible, match="'elder'"):
        distill(teacher, student, KD(teacher="elder"), data, steps=1, batch=8)
