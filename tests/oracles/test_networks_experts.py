"""Sums of experts against loops over tokens, and what gates may and may not do."""

import pytest
import torch
from torch import Tensor, nn

from limbeck import SGD, AdditiveExperts, Dataset, ExpertGates, ExpertSums, Objective, Rng, distill, mixed
from limbeck.errors import BadSetting, Incompatible
from limbeck.rng import seeded
from tests.oracles.exact import F64, close, seeds

N, WIDTH = 3, 4


def nets() -> tuple[nn.Module, nn.Module]:
    with seeded("experts"):
        teacher = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)).to(F64)
        layer = AdditiveExperts(WIDTH, experts=N, hidden=5)
        return teacher, nn.Sequential(layer, nn.Linear(WIDTH, 2)).to(F64)


def experts(net: nn.Module) -> AdditiveExperts:
    layer = net.get_submodule("0")
    assert isinstance(layer, AdditiveExperts)
    return layer


def tokens(n: int = 6) -> Tensor:
    return Rng(3).normal(n, 5, WIDTH, dtype=F64)


def loss_of(objective: Objective, x: Tensor) -> float:
    teacher, student = nets()
    run = distill(teacher, student, objective, Dataset(x=x[:1]), steps=1, batch=1, optim=SGD(lr=0.0))
    return next(iter(run)).losses[type(objective).__name__.lower()]


@seeds
def test_a_token_gets_the_first_k_experts(seed: int) -> None:
    layer, x = experts(nets()[1]), Rng(seed).normal(24, WIDTH, dtype=F64)
    layer.gated = True
    nn.init.normal_(layer.gate[2].weight, std=9.0)
    layer.eval()
    out, k = layer(x), layer.gate(x).argmax(1)
    assert k.unique().numel() > 1
    for row in range(24):
        close(out[row], torch.stack([layer.experts[i](x[row]) for i in range(k[row] + 1)]).sum(0))
    close(layer.used(layer.choice(x)), (k.to(F64) + 1) / N)


def test_without_gates_all_experts_count() -> None:
    layer, x = experts(nets()[1]), tokens()
    close(layer(x), torch.stack([expert(x) for expert in layer.experts]).sum(0))


def test_sums_are_fitted_by_the_mean_square_of_all_of_them() -> None:
    (teacher, student), x = nets(), tokens()
    out, made = teacher.get_submodule("0")(x[:1]), torch.zeros(1, 5, WIDTH, dtype=F64)
    errors = list[Tensor]()
    for expert in experts(student).experts:
        made = made + expert(x[:1])
        errors.append(((made - out) ** 2).mean())
    assert loss_of(ExpertSums(layers=("0",)), x) == pytest.approx(torch.stack(errors).mean().item(), rel=1e-9)


def test_experts_that_are_the_layer_have_nothing_to_learn() -> None:
    """The first expert is the layer and all others 0: every partial sum is the layer."""
    _, student = nets()
    teacher = nn.Sequential(experts(student).experts[0], nn.Identity())
    for expert in list(experts(student).experts)[1:]:
        for p in expert.parameters():
            nn.init.zeros_(p)
    before = [p.detach().clone() for p in student.parameters()]
    run = distill(teacher, student, ExpertSums(layers=("0",)), Dataset(x=tokens()), steps=1, batch=4, optim=SGD(lr=1.0))
    assert next(iter(run)).losses["expertsums"] == 0
    assert all(torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))


def test_choices_have_a_soft_gradient() -> None:
    """Of mixed outputs, by the choice: what each partial sum would have given."""
    partial, choice = torch.randn(N, 2, WIDTH, dtype=F64), torch.eye(N, dtype=F64)[:2].requires_grad_()
    (grad,) = torch.autograd.grad(mixed(partial, choice).sum(), choice)
    close(grad, partial.sum(-1).T)


@pytest.mark.parametrize("budget", [0.4, 0.9])
def test_gates_keep_the_budget(budget: float) -> None:
    (teacher, student), x = nets(), tokens(64)
    objective = ExpertGates(layers=("0",), budget=budget)
    distill(teacher, student, objective, Dataset(x=x), steps=150, batch=32, optim=SGD(lr=0.1)).finish()
    layer = experts(student).eval()
    assert layer.used(layer.choice(x)).mean().item() == pytest.approx(budget, abs=0.12)


def test_mistakes_are_refused() -> None:
    teacher, student = nets()
    data = Dataset(x=tokens())
    with pytest.raises(BadSetting, match="ExpertSums needs names of layers"):
        ExpertSums()
    with pytest.raises(BadSetting, match="budget"):
        ExpertGates(layers=("0",), budget=1.5)
    with pytest.raises(BadSetting, match="experts"):
        AdditiveExperts(4, experts=0, hidden=2)
    with pytest.raises(Incompatible, match="needs a student whose '1' is AdditiveExperts, got Linear"):
        distill(teacher, student, ExpertSums(layers=("1",)), data, steps=1)
