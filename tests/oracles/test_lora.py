"""Low-rank adapters: the copy starts as the original, shares its weights, and learns by its adapters alone."""

import pytest
import torch
from torch import nn

from limbeck import EDM, VSD, Critic, Fake, GaussianMixture, Incompatible, Particles, Trained, distill, low_rank
from limbeck.errors import BadSetting
from limbeck.problems.networks import ResidualMLP
from limbeck.rng import seeded
from tests.oracles.exact import F64, close


def network() -> Trained:
    """A frozen teacher whose output is not zero."""
    with seeded("lora"):
        net = ResidualMLP(shape=(2,), classes=3, width=8, blocks=2)
        nn.init.normal_(net.out.weight, std=0.3)
    return Trained(net.double()).requires_grad_(False)


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.linspace(-1, 1, 10, dtype=F64).reshape(5, 2)
    return x, torch.linspace(0.1, 2, 5, dtype=F64), torch.tensor([0, 1, 2, 0, 1])


def test_a_fresh_copy_is_the_original_and_holds_its_weights() -> None:
    teacher = network()
    copy = low_rank(teacher, 2)
    assert torch.equal(copy.denoise(*inputs()), teacher.denoise(*inputs()))
    own = {id(p) for p in teacher.parameters()}
    shared = [p for p in copy.parameters() if not p.requires_grad]
    assert len(own) == len(shared) and {id(p) for p in shared} == own


def test_an_adapter_is_a_product_of_its_factors() -> None:
    """W + (α/r)·B·A, for factors that are not zero."""
    teacher = nn.Linear(4, 3).double().requires_grad_(False)
    layer = low_rank(nn.Sequential(teacher), 2, scale=6.0)[0]
    nn.init.normal_(layer.up)
    x = torch.linspace(-1, 1, 8, dtype=F64).reshape(2, 4)
    close(layer(x), x @ (teacher.weight + 3.0 * layer.up @ layer.down).mT + teacher.bias)


def test_learning_leaves_the_teacher_alone_and_moves_the_critic() -> None:
    teacher = network()
    before = {name: p.clone() for name, p in teacher.named_parameters()}
    run = distill(teacher, Particles(inputs()[0]), VSD(fake=Fake(critic=Critic(rank=2))), steps=3, batch=5)
    run.finish()
    critic = run.cast.roles["critic"]
    assert all(torch.equal(p, before[name]) for name, p in teacher.named_parameters())
    assert sum(p.numel() for p in critic.params.values()) < sum(p.numel() for p in before.values())
    assert all(name.endswith((".down", ".up")) for name in critic.params)
    assert not torch.equal(critic.module.denoise(*inputs()), teacher.denoise(*inputs()))


def test_what_cannot_be_adapted_is_refused() -> None:
    with pytest.raises(Incompatible, match="linear layers"):
        low_rank(GaussianMixture(means=torch.zeros(1, 2), process=EDM()), 2)
    with pytest.raises(BadSetting, match="rank"):
        low_rank(network(), 0)
