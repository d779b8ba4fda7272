"""What users of other libraries reported as wrong in distillation between classifiers: none of it is so here.

Some of these are watched elsewhere: T² and α, sums over classes and gradients at half precision in test_logits.py,
micro-batches for every objective in tests/suite/test_accumulation.py, decoupled distillation at certainty, labels that
are mixed and two classes in test_networks.py, and what released code rounds away in tests/golden.
"""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import limbeck.objectives.networks as networks
from limbeck import (
    KD,
    PLD,
    Dataset,
    FitNets,
    JensenShannonKD,
    Objective,
    Online,
    OnLogits,
    Orthogonal,
    Rng,
    Same,
    SinKD,
    adaptive_target,
    balanced_kl,
    confidence_weights,
    distill,
    jensen_shannon,
    plackett_luce,
    rest_kl,
    reverse_kl,
    sinkhorn_distance,
    soft_kl,
    target_kl,
)
from limbeck.errors import Incompatible
from tests.oracles.exact import F64, close, gradient
from tests.suite.cases import OBJECTIVES

Y = torch.tensor([2, 0, 1, 2, 1, 0])
PER_EXAMPLE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "soft_kl": partial(soft_kl, temperature=2.0),
    "jensen_shannon": jensen_shannon,
    "reverse_kl": reverse_kl,
    "balanced_kl": balanced_kl,
    "target_kl": lambda s, t: target_kl(s, t, Y[: len(s)], temperature=2.0),
    "rest_kl": lambda s, t: rest_kl(s, t, Y[: len(s)], temperature=2.0),
    "adaptive_target": lambda s, t: adaptive_target(s, t, Y[: len(s)], gamma=1.4),
    "plackett_luce": lambda s, t: plackett_luce(s, t, Y[: len(s)]),
}
every = pytest.mark.parametrize("name", PER_EXAMPLE)


def logits(n: int = 6, classes: int = 5) -> tuple[Tensor, Tensor]:
    rng = Rng("peers")
    return 3 * rng.normal(n, classes, dtype=F64), 3 * rng.normal(n, classes, dtype=F64)


# Reductions: a mean over classes (`reduction="mean"`), or over rows and classes, makes a loss C times too small


@every
def test_an_example_loses_the_same_in_any_batch(name: str) -> None:
    """Row by row, with the same labels."""
    s, t = logits()
    whole = PER_EXAMPLE[name](s, t)
    assert whole.shape == (6,)
    close(PER_EXAMPLE[name](s[:4], t[:4]), whole[:4])


@pytest.mark.parametrize("name", ["soft_kl", "jensen_shannon", "reverse_kl", "balanced_kl"])
def test_divergences_sum_over_classes(name: str) -> None:
    """Every class split into two halves: a divergence stays, and a mean over classes would halve."""
    s, t = logits()
    close(PER_EXAMPLE[name](*(torch.cat([z, z], 1) for z in (s, t))), PER_EXAMPLE[name](s, t))


@every
def test_no_gradient_reaches_the_teacher(name: str) -> None:
    s, t = (z.requires_grad_() for z in logits())
    PER_EXAMPLE[name](s, t).sum().backward()
    assert t.grad is None and s.grad is not None and s.grad.norm() > 0


# Vocabularies and label sets that were padded to different sizes


def on_logits() -> list[Objective]:
    """Every exported objective on logits, as the shared suite makes it."""
    found = (getattr(networks, name) for name in networks.__all__)
    kinds = [kind for kind in found if isinstance(kind, type) and issubclass(kind, OnLogits | Online)]
    return [OBJECTIVES.get(kind.__name__, kind)() for kind in kinds if kind not in (OnLogits, Online)]


@pytest.mark.parametrize("classes", [(5, 3), (3, 5)])
@pytest.mark.parametrize("objective", on_logits(), ids=lambda objective: type(objective).__name__)
def test_padded_classes_are_refused(objective: Objective, classes: tuple[int, int]) -> None:
    """Whoever has more of them: neither is cut or filled up behind the user's back."""
    one, other, before = (nn.Linear(4, n) for n in (*classes, classes[1]))
    data = Dataset(x=torch.randn(16, 4), y=torch.arange(16) % 3)
    more = {objective.before: before} if hasattr(objective, "before") else {}
    nets = (
        (None, {"student": other, "peer": one}) if isinstance(objective, Online) else (more | {"teacher": one}, other)
    )
    with pytest.raises(Incompatible, match=r"with \d classes, got \d"):
        distill(*nets, objective, data, steps=1, batch=8).finish()


@pytest.mark.parametrize("name", ["soft_kl", "jensen_shannon"])
def test_classes_filled_up_with_zeros_are_not_nothing(name: str) -> None:
    """e^0 is 1: the loss would be another one, which is why it is refused."""
    s, t = logits()
    padded = PER_EXAMPLE[name](*(torch.cat([z, torch.zeros(6, 40, dtype=F64)], 1) for z in (s, t)))
    assert ((padded - PER_EXAMPLE[name](s, t)).abs() > 1e-3).all()


GAPS = ["soft_kl", "jensen_shannon", "rest_kl", "target_kl", "adaptive_target", "plackett_luce"]


@pytest.mark.parametrize("name", GAPS)
def test_a_teacher_may_know_its_best_classes_only(name: str) -> None:
    """All others are −∞: what it says of them is nothing, and no gradient is NaN. −10⁴ says the same in numbers."""
    s, t = logits()
    gaps = torch.cat([t[:, :3], torch.full((6, 2), -torch.inf, dtype=F64)], 1)
    known = torch.where(gaps.isneginf(), -1e4, gaps)
    value = PER_EXAMPLE[name](s, gaps)
    close(value, PER_EXAMPLE[name](s, known), 1e-10)
    (g,) = gradient(lambda s: PER_EXAMPLE[name](s, gaps).sum(), s)
    close(g, gradient(lambda s: PER_EXAMPLE[name](s, known).sum(), s)[0], 1e-10)


def test_a_teachers_gaps_reach_a_transport() -> None:
    s, t = logits()
    gaps = torch.cat([t[:, :3], torch.full((6, 2), -torch.inf, dtype=F64)], 1)
    close(sinkhorn_distance(s, gaps), sinkhorn_distance(s, torch.where(gaps.isneginf(), -1e4, gaps)))


@pytest.mark.parametrize("name", ["soft_kl", "jensen_shannon"])
def test_classes_that_neither_knows_change_nothing(name: str) -> None:
    """Both masked by −∞: as if these classes were not there, with gradients 0 at them."""
    s, t = logits()
    masked = [torch.cat([z, torch.full((6, 2), -torch.inf, dtype=F64)], 1) for z in (s, t)]
    close(PER_EXAMPLE[name](*masked), PER_EXAMPLE[name](s, t))
    (g,) = gradient(lambda s: PER_EXAMPLE[name](s, masked[1]).sum(), masked[0])
    close(g[:, :5], gradient(lambda s: PER_EXAMPLE[name](s, t).sum(), s)[0])
    assert (g[:, 5:] == 0).all()


# Divergences below zero


SIGNS = ["jensen_shannon", "reverse_kl", "balanced_kl", "soft_kl", "target_kl", "rest_kl"]


@pytest.mark.parametrize("name", SIGNS)
def test_rounding_makes_no_divergence_negative(name: str) -> None:
    """A teacher in bfloat16, in float16 and in float32, and a student that is as near as can be."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for distance in (0.0, 1e-4, 1e-3, 0.02):
            rng, labels = Rng(("half", distance)), torch.arange(1024) % 3
            t = (3 * rng.normal(1024, 100)).to(dtype)
            s = (t.float() + distance * rng.normal(1024, 100)).to(dtype)
            kl = {"target_kl": target_kl, "rest_kl": rest_kl}.get(name)
            value = kl(s, t, labels) if kl else PER_EXAMPLE[name](s, t)
            assert value.dtype == torch.float32 and value.min() >= 0


@pytest.mark.parametrize("objective", [KD(alpha=1.0), JensenShannonKD()], ids=lambda o: type(o).__name__)
def test_a_teacher_in_half_precision_is_compared_in_whole(objective: Objective) -> None:
    """What half precision of both logits leaves of the loss is that of the logits' own rounding."""
    torch.manual_seed(0)
    student, teacher = nn.Linear(4, 50), nn.Linear(4, 50).bfloat16()

    class Whole(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return teacher(x.bfloat16())

    class Widened(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return teacher(x.bfloat16()).float()

    data = Dataset(x=Rng("x").normal(64, 4))
    losses = []
    for net in (Whole(), Widened()):
        run = distill(net, copy.deepcopy(student), objective, data, steps=1, batch=32)
        losses.append(next(iter(run)).losses)
    assert losses[0] == losses[1]


# A teacher that is fed with what was made for the student, or that learns


class Normalised(nn.Module):
    """A network with a normalisation of its own.

    Args:
        net: what follows.
        mean: subtracted.
        std: divides.
        inplace: the normalisation writes into what it is given.
    """

    def __init__(self, net: nn.Module, mean: float, std: float, *, inplace: bool = False):
        super().__init__()
        self.net, self.mean, self.std, self.inplace = net, mean, std, inplace

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.sub_(self.mean).div_(self.std) if self.inplace else (x - self.mean) / self.std)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_teacher_sees_the_batch_under_its_own_normalisation(inplace: bool) -> None:
    """Batches are as the data have them, and normalisations belong to networks, so that none gets another's.

    A student that writes into its inputs would feed the teacher with them: that is refused, or does nothing.
    """
    x = 5 + Rng("x").normal(64, 4, dtype=F64)
    seen: list[Tensor] = []
    teacher = Normalised(nn.Linear(4, 3), 1.0, 2.0).double()
    student = Normalised(nn.Linear(4, 3), 5.0, 3.0, inplace=inplace).double()
    teacher.net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    data = Dataset(x=x, y=torch.arange(64) % 3)
    batch = data.take(8, Rng((0, 0, "data"), part=slice(0, 8), total=8))["x"]
    run = distill(teacher, student, KD(), data, steps=1, batch=8)
    try:
        run.tick()
    except Incompatible:
        assert inplace
    else:
        close(seen[-1], (batch - 1) / 2)


def test_a_teacher_does_not_learn_by_being_asked() -> None:
    """It answers without dropout, by the statistics that it was trained with, and keeps these."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 3)).double()
    teacher.train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    said: list[tuple[Tensor, Tensor]] = []
    teacher.register_forward_hook(lambda module, inputs, out: said.append((inputs[0], out)))
    data = Dataset(x=Rng("x").normal(64, 4, dtype=F64), y=torch.arange(64) % 3)
    distill(teacher, nn.Linear(4, 3).double(), KD() + PLD(), data, steps=3, batch=8).finish()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    for x, out in said[-3:]:
        with torch.no_grad():
            close(out, copy.deepcopy(teacher).eval()(x))


# Features that change after they were read


@pytest.mark.parametrize("inplace", [False, True])
def test_a_tap_gives_what_its_layer_put_out(inplace: bool) -> None:
    """A ReLU that works in place would make another feature of it: that is refused, or does nothing."""
    losses = []
    for act in (nn.ReLU(), nn.ReLU(inplace=inplace)):
        torch.manual_seed(0)
        teacher, student = (nn.Sequential(nn.Linear(4, 6), copy.deepcopy(act), nn.Linear(6, 3)) for _ in range(2))
        objective = FitNets(pairs={"0": "0"}, projector=Same())
        data = Dataset(x=Rng("x").normal(64, 4))
        try:
            losses.append(distill(teacher, student, objective, data, steps=1, batch=8).tick().losses)
        except Incompatible:
            assert inplace
            return
    assert losses[0] == losses[1]


# What is coupled by the batch


def test_losses_that_couple_the_batch_are_means_over_it() -> None:
    """The batch shown twice: a sum over it would be twice as long, as released code of SinKD is."""
    s, t = logits()
    twice = [torch.cat([z, z]) for z in (s, t)]
    one, two = (SinKD(rounds=300).value(*z, tick=None) for z in ((s, t), twice))  # type: ignore[arg-type]
    close(two, one, 1e-6)
    close(2 * confidence_weights(twice[1])[:6], confidence_weights(t))


def test_orthogonal_projections_are_exact_in_half_precision() -> None:
    """Rows that are orthonormal up to bfloat16's rounding would not be: they are made in float32."""
    made = Orthogonal().build(torch.Size((2, 24)), torch.Size((2, 64)))
    x = Rng("x").normal(8, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = made(x)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out @ out.T, x @ x.T, rtol=1e-4, atol=1e-4)
