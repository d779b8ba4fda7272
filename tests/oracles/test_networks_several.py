"""Several teachers: their average, an adversary on outputs, and features of all of them."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck import (
    KD,
    SGD,
    UNIC,
    Dataset,
    Hinge,
    OutputGAN,
    Projection,
    Rng,
    cosine_and_smooth,
    distill,
    heard,
    standardised,
)
from limbeck.errors import BadSetting, Incompatible
from limbeck.objectives.networks.several import rows
from limbeck.teachers import Ensemble
from tests.oracles.exact import F64, close, descended, seeds


def points(seed: int, n: int = 7, d: int = 4) -> Tensor:
    return Rng(("several", seed)).normal(n, d, dtype=F64)


def linear(seed: int, classes: int = 3, d: int = 4) -> nn.Linear:
    net = nn.Linear(d, classes, dtype=F64)
    rng = Rng(("linear", seed))
    with torch.no_grad():
        net.weight.copy_(rng.normal(classes, d, dtype=F64))
        net.bias.copy_(rng.normal(classes, dtype=F64))
    return net


# averages of probabilities


@seeds
def test_an_ensemble_is_the_mean_of_probabilities(seed: int) -> None:
    x, nets = points(seed), [linear(10 * seed + k) for k in range(3)]
    expected = sum((net(x).exp() / net(x).exp().sum(1, keepdim=True) for net in nets), torch.zeros(7, 3, dtype=F64)) / 3
    close(Ensemble(*nets)(x).exp(), expected)
    close(Ensemble(nets[0])(x), nets[0](x).log_softmax(1))


@seeds
def test_kd_from_copies_of_one_teacher_is_kd_from_it(seed: int) -> None:
    """Log-probabilities are logits less a constant, at every temperature."""
    x, teacher = points(seed), linear(seed)
    moved = [
        descended(KD(alpha=1.0), t, linear(seed + 50), Dataset(x=x), batch=7)["weight"]
        for t in (teacher, Ensemble(teacher, teacher))
    ]
    close(*moved)


def test_ensembles_need_members_that_agree() -> None:
    with pytest.raises(BadSetting, match="at least one member"):
        Ensemble()
    with pytest.raises(Incompatible, match="same classes, got 3 and 2"):
        Ensemble(linear(0), linear(1, classes=2))(points(0))


# an adversary on outputs


@pytest.mark.parametrize("hinge", [False, True])
def test_the_adversary_on_outputs_by_hand(hinge: bool) -> None:
    """Both gradients of one tick, where the discriminator's are of the same starting parameters."""
    x, teacher = points(1), linear(2)
    objective = OutputGAN(loss=Hinge()) if hinge else OutputGAN()
    run = distill(teacher, linear(3), objective, Dataset(x=x), steps=1, batch=7, optim=SGD(lr=1.0), seed=4)
    student, judge = (run.cast.module(who) for who in ("student", "outputgan discriminator"))
    seen = run.source.take(7, Rng((4, 0, "data")))["x"]
    fake, real = (judge(net(seen).log_softmax(1))[:, 0] for net in (student, teacher))
    if hinge:
        mine, its = -fake.mean(), ((1 + fake).relu() + (1 - real).relu()).mean()
    else:
        p, q = fake.sigmoid(), real.sigmoid()
        mine, its = -p.log().mean(), -((1 - p).log() + q.log()).mean()
    wanted = {
        "student": torch.autograd.grad(mine, [*student.parameters()], retain_graph=True),
        "outputgan discriminator": torch.autograd.grad(its, [*judge.parameters()]),
    }
    before = {who: [p.detach().clone() for p in run.cast.module(who).parameters()] for who in wanted}
    step = run.tick()
    close(torch.tensor(step.losses["outputgan"], dtype=F64), mine)
    for who, grads in wanted.items():
        for old, p, grad in zip(before[who], run.cast.module(who).parameters(), grads, strict=True):
            close(old - p, grad)


def test_the_adversary_does_not_know_a_constant() -> None:
    """Logits that differ by a number for each example are the same prediction."""
    losses = []
    for more in (0, 7):
        student = linear(1)
        with torch.no_grad():
            student.bias += more
        run = distill(linear(0), student, OutputGAN(), Dataset(x=points(0)), steps=1, batch=7)
        losses.append(torch.tensor([*run.tick().losses.values()], dtype=F64))
    close(*losses)


def test_widths_of_the_adversary() -> None:
    with pytest.raises(BadSetting, match="hidden must be at least 1, got 0"):
        OutputGAN(hidden=0)


# features of several teachers


@seeds
def test_standardised_features_have_mean_0_and_variance_1(seed: int) -> None:
    f = 5 + 3 * Rng(("f", seed)).normal(6, 5, 4, dtype=F64)
    made = standardised(f, eps=0.0)
    close(made.flatten(0, 1).mean(0), torch.zeros(4, dtype=F64))
    close(made.flatten(0, 1).var(0, correction=0), torch.ones(4, dtype=F64))
    close(standardised(10 * f + 3, eps=0.0), made)
    assert (standardised(torch.ones(3, 1, 2)) == 0).all()  # a channel that says nothing


@seeds
def test_cosine_and_smooth_is_the_sum_written_out(seed: int) -> None:
    s, t = (2 * Rng((seed, side)).normal(3, 2, 4, dtype=F64) for side in "st")
    expected = []
    for i in range(3):
        places = []
        for j in range(2):
            a, b = s[i, j].tolist(), t[i, j].tolist()
            dot, norms = sum(x * y for x, y in zip(a, b, strict=True)), math.hypot(*a) * math.hypot(*b)
            gaps = [abs(x - y) for x, y in zip(a, b, strict=True)]
            smooth = sum(g * g / 2 if g < 1 else g - 0.5 for g in gaps) / 4
            places.append((1 - dot / norms) / 2 + smooth / 2)
        expected.append(sum(places) / 2)
    close(cosine_and_smooth(s, t), torch.tensor(expected, dtype=F64))


@seeds
@pytest.mark.parametrize("drop", [0.0, 0.3, 1.0])
def test_the_most_lost_by_is_always_heard(seed: int, drop: float) -> None:
    rng = Rng(("heard", seed))
    losses, chance = rng.uniform(4000, 3), rng.uniform(4000, 3)
    kept = heard(losses, chance, drop=drop)
    assert kept[torch.arange(4000), losses.argmax(1)].all()
    others = kept.sum(1) - 1
    assert abs(others.double().mean() / 2 - (1 - drop)) < 0.03
    if drop == 1:
        assert (others == 0).all()


def test_features_of_any_shape_are_places_in_a_row() -> None:
    maps = torch.arange(24.0).view(1, 2, 3, 4)
    assert rows(maps)[0, 5].tolist() == maps[0, :, 1, 1].tolist()
    tokens = torch.zeros(2, 5, 3)
    assert rows(tokens) is not None and rows(tokens).shape == (2, 5, 3)


def nets() -> tuple[dict[str, nn.Module], nn.Sequential]:
    teachers = {"teacher": nn.Sequential(linear(1, 5)), "second": nn.Sequential(linear(2, 6))}
    return dict(teachers), nn.Sequential(linear(3, 4), nn.Tanh(), linear(4, 3))


SETTINGS = UNIC(teachers={"teacher": "0", "second": "0"}, last="2", ladder=("1",), projector=Projection())


@pytest.mark.parametrize("drop", [0.0, 1.0])
def test_unic_by_hand(drop: float) -> None:
    """Without dropping a mean over teachers; where all others drop, the larger loss of each example alone."""
    teachers, student = nets()
    data = Dataset(x=points(5))
    run = distill(teachers, student, replace(SETTINGS, drop=drop), data, steps=1, batch=7, seed=6)
    x = run.source.take(7, Rng((6, 0, "data")))["x"]
    (ladders,) = (role.module for name, role in run.cast.roles.items() if name != "student")
    low, last = student[1](student[0](x)), student(x)
    each = []
    for ladder, teacher in zip(ladders.children(), teachers.values(), strict=True):
        top, rung = ladder.children()
        t = teacher(x)
        t = (t - t.mean(0)) / (t.var(0, correction=0) + 1e-5).sqrt()
        made = top(last) + rung(low)
        each.append((1 - F.cosine_similarity(made, t) + F.smooth_l1_loss(made, t, reduction="none").mean(1)) / 2)
    both = torch.stack(each)
    expected = both.mean() if drop == 0 else both.amax(0).mean()
    close(torch.tensor(run.tick().losses["unic"], dtype=F64), expected.detach())


def test_unic_does_not_hear_how_loud_a_teacher_is() -> None:
    teachers, _ = nets()
    with torch.no_grad():
        loud = {**teachers, "second": nn.Sequential(linear(2, 6))}
        for p in loud["second"].parameters():
            p.mul_(10)
    moved = [
        descended(SETTINGS, known, nets()[1], Dataset(x=points(5, n=64)), batch=64)["0.weight"]
        for known in (teachers, loud)
    ]
    close(*moved, 1e-3)  # the constant beside variances is not scaled


def test_what_unic_refuses() -> None:
    teachers, student = nets()
    data = Dataset(x=points(5))
    with pytest.raises(BadSetting, match="UNIC needs teachers="):
        UNIC(last="2")
    with pytest.raises(BadSetting, match="drop must be between 0 and 1, got 2"):
        replace(SETTINGS, drop=2.0)
    with pytest.raises(Incompatible, match="a teacher named 'second'"):
        distill(teachers["teacher"], student, SETTINGS, data, steps=1, batch=7)
    with pytest.raises(Incompatible, match="couples its batch"):
        distill(teachers, student, SETTINGS, data, steps=1, batch=6, accumulate=2)
