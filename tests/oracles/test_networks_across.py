"""Projectors between kinds of networks, and the two views of features, against sums written out."""

import copy
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from scipy.fft import dctn, idctn
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck import (
    Convolution,
    CrossAttention,
    Dataset,
    DualView,
    FitNets,
    Groupwise,
    Projection,
    Rng,
    Same,
    ThroughTeacher,
    alternating,
    direction_error,
    distill,
)
from limbeck.engine.taps import tap
from limbeck.engine.tick import Tick
from limbeck.errors import BadSetting, Incompatible
from limbeck.objectives.networks.across import as_map
from limbeck.problems.digits_classify import DigitsClassify
from limbeck.problems.networks import ConvNet, ViT
from limbeck.recipes.claims import fitted
from tests.oracles.exact import F64, close, seeds

FORMS = [torch.Size((2, 8, 4, 4)), torch.Size((2, 16, 8)), torch.Size((2, 8))]
forms = pytest.mark.parametrize("to", FORMS, ids=["map", "tokens", "vector"])


def normal(name: object, *shape: int) -> Tensor:
    return Rng(("across", name)).normal(*shape, dtype=F64)


@forms
@pytest.mark.parametrize("of", [(2, 6, 8, 8), (2, 9, 6), (2, 6)], ids=["map", "tokens", "vector"])
def test_attention_brings_any_form_to_any(of: tuple[int, ...], to: torch.Size) -> None:
    made = CrossAttention(heads=2).build(torch.Size(of), to)
    assert made(torch.randn(3, *of[1:])).shape == (3, *to[1:])


@seeds
def test_attention_is_the_sum_written_out(seed: int) -> None:
    """Each query reads a mean of values, weighed by exp(q·k/√d), head by head."""
    made = CrossAttention(heads=2).build(torch.Size((2, 5, 3, 3)), torch.Size((2, 4, 6))).double()
    x, attend = normal(seed, 3, 5, 3, 3), made.attend
    keys = F.linear(x.permute(0, 2, 3, 1).reshape(3, 9, 5), made.embed.weight, made.embed.bias) + made.places
    (wq, wk, wv), out = attend.in_proj_weight.split(6), torch.zeros(3, 4, 6, dtype=F64)
    for i in range(3):
        for n in range(4):
            for h in (slice(0, 3), slice(3, 6)):
                q, k, v = (made.queries[0, n] @ wq.T)[h], (keys[i] @ wk.T)[:, h], (keys[i] @ wv.T)[:, h]
                out[i, n, h] = ((k @ q) / 3**0.5).softmax(0) @ v
    out = out @ attend.out_proj.weight.T + attend.out_proj.bias
    close(made(x), out + made.mix(F.layer_norm(out, (6,))))


def test_attention_refuses_heads_that_do_not_divide() -> None:
    with pytest.raises(BadSetting, match="CrossAttention needs heads that divide 6 channels, got 4"):
        CrossAttention().build(torch.Size((2, 5)), torch.Size((2, 6)))
    with pytest.raises(BadSetting, match="heads"):
        CrossAttention(heads=0)


@seeds
def test_groupwise_is_one_matrix_for_each_neighbourhood(seed: int) -> None:
    made = Groupwise(side=2).build(torch.Size((2, 5, 4, 6)), torch.Size((2, 3, 4, 6))).double()
    nn.init.normal_(made.inner.bias)
    x = normal(seed, 2, 5, 4, 6)
    for row in range(4):
        for column in range(6):
            g = (row // 2) * 3 + column // 2
            close(made(x)[:, :, row, column], x[:, :, row, column] @ made.inner.weight[g] + made.inner.bias[g])


def test_groupwise_over_all_places_is_one_linear_map() -> None:
    shapes = torch.Size((2, 16, 5)), torch.Size((2, 16, 3))
    made, plain = Groupwise(side=4).build(*shapes).double(), Projection().build(*shapes).double()
    linear = plain.inner[0]
    with torch.no_grad():
        linear.weight.copy_(made.inner.weight[0].T)
        linear.bias.copy_(made.inner.bias[0])
    close(made(x := normal("one", 4, 16, 5)), plain(x))


def test_groupwise_refuses_what_it_cannot_divide() -> None:
    with pytest.raises(BadSetting, match=r"Groupwise needs sides that divide the teacher's map of 4 × 4, got 3"):
        Groupwise(side=3).build(torch.Size((2, 16, 5)), torch.Size((2, 16, 3)))
    with pytest.raises(Incompatible, match="a square number of tokens"):
        Groupwise(side=1).build(torch.Size((2, 16, 5)), torch.Size((2, 15, 3)))


@forms
def test_convolution_of_one_pixel_is_a_projection(to: torch.Size) -> None:
    of = torch.Size((2, 5, 8, 8))
    made, plain = (p.build(of, to).double() for p in (Convolution(kernel=1), Projection()))
    with torch.no_grad():
        plain.inner[0].weight.copy_(made.inner.weight[:, :, 0, 0])
        plain.inner[0].bias.copy_(made.inner.bias)
    close(made(x := normal("conv", 3, 5, 8, 8)), plain(x))


def test_convolution_sees_the_neighbours_of_a_place() -> None:
    made = Convolution(kernel=3).build(torch.Size((2, 25, 2)), torch.Size((2, 25, 2))).double()
    x = torch.zeros(1, 25, 2, dtype=F64)
    moved = x.clone()
    moved[0, 12, 0] = 1
    seen = as_map((made(moved) - made(x)).abs())[0].sum(0) > 0
    assert seen.tolist() == [[row in (1, 2, 3) and column in (1, 2, 3) for column in range(5)] for row in range(5)]
    with pytest.raises(BadSetting, match="an odd kernel, got 2"):
        Convolution(kernel=2)


@seeds
def test_alternating_is_the_cosine_transform_without_its_first_coefficient(seed: int) -> None:
    x = normal(("dct", seed), 2, 3, 4, 6)
    spectrum = dctn(x.numpy(), axes=(2, 3), norm="ortho")
    spectrum[:, :, 0, 0] = 0
    close(alternating(x), torch.as_tensor(idctn(spectrum, axes=(2, 3), norm="ortho")))
    close(alternating(x + normal(("constant", seed), 2, 3, 1, 1)), alternating(x))
    kept = dctn(alternating(x).numpy(), axes=(2, 3), norm="ortho")
    close(torch.as_tensor(kept).square().sum(), alternating(x).square().sum())  # an error is the same in both


@seeds
def test_the_error_of_directions_is_twice_one_minus_the_cosine(seed: int) -> None:
    s, t = normal(("s", seed), 2, 3, 4, 4), normal(("t", seed), 2, 3, 4, 4)
    close(direction_error(s, t), 2 - 2 * F.cosine_similarity(s, t, dim=1).mean((1, 2)))
    close(direction_error(3 * s, t), direction_error(s, t))


def nets() -> tuple[ViT, ConvNet, Dataset]:
    torch.manual_seed(0)
    return ViT(size=8, classes=3, width=8), ConvNet(classes=3, widths=(4, 5)), Dataset(x=torch.randn(16, 1, 8, 8))


def batch(data: Dataset) -> Tensor:
    return data.take(8, Rng((0, 0, "data"), part=slice(0, 8), total=8))["x"]


def test_dual_view_is_both_errors_of_what_the_projector_makes() -> None:
    teacher, student, data = nets()
    objective = DualView(pairs={"blocks.0": "blocks.2"}, alternate=0.5, projector=CrossAttention(heads=2))
    run = distill(teacher, student, objective, data, steps=1, batch=8)
    with torch.no_grad(), tap(teacher, "blocks.2") as theirs, tap(student, "blocks.0") as ours:
        teacher(batch(data)), student(batch(data))
        projector = run.cast.roles["dualview projector blocks.0 → blocks.2"].module[0]
        s, t = (as_map(x) for x in (projector(ours["blocks.0"]), theirs["blocks.2"]))
        parts = [2 - 2 * F.cosine_similarity(*pair, dim=1).mean() for pair in ((s, t), (centred(s), centred(t)))]
    found = run.tick().losses["dualview"]
    assert found == pytest.approx((parts[0] + 0.5 * parts[1]).item(), rel=1e-5)


def centred(x: Tensor) -> Tensor:
    return x - x.flatten(2).mean(2)[:, :, None, None]


def test_features_pass_the_teachers_stage_and_it_learns_nothing() -> None:
    """Its own input has no loss; gradients pass the stage to the student, and leave none in it."""
    teacher, student, data = nets()
    objective = ThroughTeacher(pairs={"blocks.1": "blocks.2:in"}, projector=CrossAttention(heads=2))
    run = distill(teacher, student, objective, data, steps=2, batch=8)
    before, first = (copy.deepcopy(net.state_dict()) for net in (teacher, student))
    tick = cast(Tick, SimpleNamespace(cast=run.cast))
    x, y = (torch.randn(2, 16, 8).requires_grad_() for _ in range(2))
    assert objective.value(x, x, tick).abs().max() < 1e-6
    expected = DualView(pairs={"": ""}).value(teacher.blocks[2](y), teacher.blocks[2](x), tick)
    torch.testing.assert_close(objective.value(y, x, tick), expected)
    assert torch.autograd.grad(expected.sum(), y)[0].abs().sum() > 0
    run.finish()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not torch.equal(student.state_dict()["blocks.0.0.weight"], first["blocks.0.0.weight"])


def test_what_does_not_fit_is_refused() -> None:
    for pairs in ({"blocks.1": "blocks.2"}, {"blocks.0": "blocks.1:in", "blocks.1": "blocks.2:in"}):
        with pytest.raises(BadSetting, match="ThroughTeacher needs one pair that ends in a stage's input"):
            ThroughTeacher(pairs=pairs)
    with pytest.raises(BadSetting, match="alternate"):
        DualView(pairs={"0": "0"}, alternate=-1.0)


def test_what_is_fitted_is_judged_on_held_out_data_and_the_student_stays() -> None:
    """Without a projector to fit, the figure is the loss itself; with one, it falls as that learns."""
    problem = DigitsClassify()
    student = problem.network()
    before = copy.deepcopy(student.state_dict())
    found = fitted(FitNets(pairs={"3": "head"}, projector=Same()), steps=2)(student, problem, 0)
    with torch.no_grad():
        expected = ((student(problem.heldout[0]) - problem.teacher(problem.heldout[0])) ** 2).mean()
    assert found == pytest.approx(expected.item(), rel=1e-5)
    short, long = (fitted(FitNets(pairs={"2": "head"}), steps=steps)(student, problem, 0) for steps in (1, 200))
    assert long < 0.9 * short
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
