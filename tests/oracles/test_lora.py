"""Low-rank adapters: the copy starts as the original, shares its weights, and learns by its adapters alone."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck import EDM, VSD, Critic, Fake, GaussianMixture, Incompatible, Particles, Trained, distill, low_rank
from limbeck.errors import BadSetting
from limbeck.problems.networks import ResidualMLP
from limbeck.rng import Rng, seeded
from limbeck.students import FromTeacher
from limbeck.teachers.lora import LowRank, merged
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


LAYERS: dict[str, Any] = {
    "linear": lambda: nn.Linear(6, 4),
    "no bias": lambda: nn.Linear(6, 4, bias=False),
    "convolution": lambda: nn.Conv2d(6, 4, 3, padding=1),
    "strided": lambda: nn.Conv2d(6, 4, (3, 2), stride=2, padding=(1, 0), bias=False),
    "same size": lambda: nn.Conv2d(6, 4, 3, padding="same"),
    "one pixel": lambda: nn.Conv2d(6, 4, 1),
}


def adapted_layer(kind: str, **settings: Any) -> tuple[nn.Module, LowRank, Tensor]:
    """A frozen layer in a network, its adapter with factors that are not zero, and an input."""
    with seeded(kind):
        net = nn.ModuleDict({"layer": LAYERS[kind]()}).requires_grad_(False)
        layer = low_rank(net, 3, scale=6.0, **settings)["layer"]
        assert isinstance(layer, LowRank)
        nn.init.normal_(layer.up)
    linear = isinstance(net["layer"], nn.Linear)
    return net, layer, Rng(kind).normal(2, *((5, 6) if linear else (6, 7, 8)), dtype=torch.float32)


@pytest.mark.parametrize("kind", LAYERS)
def test_adapters_are_those_of_peft(kind: str) -> None:
    """Output, gradients of both factors, and merged weights, with PEFT's own layer of the same factors."""
    peft = pytest.importorskip("peft")
    net, ours, x = adapted_layer(kind)
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["layer"])
    theirs: Any = peft.inject_adapter_in_model(config, copy.deepcopy(net))["layer"]
    theirs.lora_A["default"].weight.data.copy_(ours.down)
    theirs.lora_B["default"].weight.data.copy_(ours.up)
    for layer in (ours, theirs):
        (layer(x) ** 2).sum().backward()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-6, atol=1e-6)
    for a, b in ((ours.down, theirs.lora_A["default"].weight), (ours.up, theirs.lora_B["default"].weight)):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)
    theirs.merge()
    torch.testing.assert_close(merged(nn.Sequential(ours))[0].weight, theirs.get_base_layer().weight)


@pytest.mark.parametrize("kind", LAYERS)
def test_merged_weights_are_plain_and_give_the_same(kind: str) -> None:
    net, layer, x = adapted_layer(kind)
    plain = merged(nn.ModuleDict({"layer": layer, "rest": net}))
    assert type(plain["layer"]) is type(net["layer"]) and not any(p.requires_grad for p in plain.parameters())
    torch.testing.assert_close(plain["layer"](x), layer(x), rtol=1e-5, atol=1e-5)
    assert plain["rest"]["layer"].weight is net["layer"].weight is layer.weight  # nothing else was touched


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_adapters_are_finer_than_a_base_in_half_precision(half: torch.dtype, autocast: bool) -> None:
    """The base's dtype in and out, fp32 factors with fp32 gradients, near the same layer in fp32."""
    for kind in ("linear", "convolution"):
        _, fine, x = adapted_layer(kind)
        base = nn.ModuleDict({"layer": LAYERS[kind]()}).requires_grad_(False)
        base.load_state_dict({"layer.weight": fine.weight, "layer.bias": fine.bias})
        layer = low_rank(base.to(half), 3, scale=6.0)["layer"]
        layer.load_state_dict({**layer.state_dict(), "down": fine.down, "up": fine.up})
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = layer(x if autocast else x.to(half))
        assert out.dtype == (torch.bfloat16 if autocast else half)
        assert layer.down.dtype == layer.up.dtype == torch.float32
        for one, o in ((layer, out), (fine, fine(x))):
            o.float().square().mean().backward()
            assert one.down.grad.dtype == torch.float32
        torch.testing.assert_close(out.float(), fine(x), rtol=0.03, atol=0.03)
        torch.testing.assert_close(layer.down.grad, fine.down.grad, rtol=0.1, atol=0.1)


def test_adapters_go_on_adapters() -> None:
    """The sum of both products on one base, and merged the same."""
    _, first, x = adapted_layer("convolution")
    net = nn.ModuleDict({"layer": first}).requires_grad_(False)
    again = low_rank(net, 2, ("layer",))
    with seeded("again"):
        nn.init.normal_(again["layer"].base.up)
    assert [name for name, p in again.named_parameters() if p.requires_grad] == ["layer.base.down", "layer.base.up"]
    inner = again["layer"].base
    weight = first.weight + first.delta() + inner.delta()
    close(again["layer"](x), nn.functional.conv2d(x, weight, first.bias, padding=1), 1e-4)
    close(merged(again)["layer"].weight, weight, 1e-5)


class Attending(nn.Module):
    """Layers by the names that networks of diffusers have; the last four hold none that adapters fit on."""

    def __init__(self) -> None:
        super().__init__()
        self.attn1 = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("to_q", "to_k", "to_v")})
        self.attn1["to_out"] = nn.ModuleList([nn.Linear(4, 4), nn.Dropout()])
        self.conv_in = nn.Conv2d(4, 4, 3)
        self.grouped = nn.Conv2d(4, 4, 3, groups=2)
        self.dilated = nn.Conv2d(4, 4, 3, dilation=2)
        self.reflecting = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.mha = nn.MultiheadAttention(4, 2)


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        (("to_q",), {"attn1.to_q"}),
        (("to_q", "to_v"), {"attn1.to_q", "attn1.to_v"}),
        (("attn1.*",), {"attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"}),
        (("to_out.0", "conv_*"), {"attn1.to_out.0", "conv_in"}),
        (("*",), {"attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "conv_in"}),
    ],
)
def test_targets_are_layers_by_name(targets: tuple[str, ...], layers: set[str]) -> None:
    copy = low_rank(Attending().requires_grad_(False), 2, targets)
    assert {name for name, part in copy.named_modules() if isinstance(part, LowRank)} == layers
    learned = {name.rpartition(".")[0] for name, p in copy.named_parameters() if p.requires_grad}
    assert learned == layers


def test_targets_of_no_layer_are_refused_with_the_nearest() -> None:
    net = Attending().requires_grad_(False)
    with pytest.raises(Incompatible, match=r"a layer 'to_w'.*'to_v'"):
        low_rank(net, 2, ("to_q", "to_w"))
    for name in ("grouped", "dilated", "reflecting", "out_proj", "q"):
        with pytest.raises(Incompatible, match=f"a layer '{name}'"):
            low_rank(net, 2, (name,))


def test_what_cannot_be_adapted_is_refused() -> None:
    with pytest.raises(Incompatible, match="linear layers"):
        low_rank(GaussianMixture(means=torch.zeros(1, 2), process=EDM()), 2)
    with pytest.raises(BadSetting, match="rank"):
        low_rank(network(), 0)
    with pytest.raises(BadSetting, match="at least one layer"):
        low_rank(network(), 2, ())
    for dtype in (torch.int8, torch.complex64, torch.float8_e4m3fn):
        with pytest.raises(BadSetting, match="dtype must be one of"):
            low_rank(network(), 2, dtype=dtype)
    with pytest.raises(Incompatible, match=r"a frozen network.*whose net\.level\.weight learns"):
        low_rank(network().requires_grad_(True), 2)
    for make in (Critic, FromTeacher):
        with pytest.raises(BadSetting, match="rank must be at least 1"):
            make(rank=0)
        with pytest.raises(BadSetting, match="need a rank"):
            make(targets=("up",))
