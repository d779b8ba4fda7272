"""The vision transformer whose queries, keys and values can be tapped, against torch's own attention."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from limbeck import Rng
from limbeck.engine.taps import tap
from limbeck.problems.networks import SelfAttention, ViT
from limbeck.rng import seeded


def plain(net: ViT) -> ViT:
    """The same with torch's attention in the place of ours."""
    made = copy.deepcopy(net)
    for block in made.blocks:
        ours = block.self_attn
        assert isinstance(ours, SelfAttention)
        block.self_attn = nn.MultiheadAttention(ours.embed_dim, ours.num_heads, batch_first=True)
        block.self_attn.load_state_dict(ours.state_dict())
    return made


def test_it_is_torchs_transformer_to_the_bit() -> None:
    """Outputs and gradients, training or not, and parameters of the same names from the same generator."""
    with seeded("vit"):
        net = ViT(size=8, classes=10, width=48)
    with seeded("vit"):
        nn.Conv2d(1, 48, 2, stride=2)
        torch.randn(1, 16, 48)
        first = nn.TransformerEncoderLayer(48, 4, 96, 0.0, F.gelu, 1e-5, True, True)
    assert torch.equal(net.blocks[0].self_attn.in_proj_weight, first.self_attn.in_proj_weight)
    other, x = plain(net), Rng("vit").normal(16, 1, 8, 8)
    assert list(net.state_dict()) == list(other.state_dict())
    for mode in (True, False):
        made = [each.train(mode)(x) for each in (net, other)]
        grads = [
            torch.autograd.grad(y.square().sum(), [*n.parameters()]) for y, n in zip(made, (net, other), strict=True)
        ]
        assert torch.equal(*made) and all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
        with torch.no_grad():
            assert torch.equal(net(x), other(x))


def test_queries_keys_and_values_are_those_of_the_block() -> None:
    net, x = ViT(size=8, classes=10, width=24, heads=3), torch.randn(5, 1, 8, 8)
    attention = net.blocks[1].self_attn
    names = [f"blocks.1.self_attn.{name}" for name in ("queries", "keys", "values")]
    for mode in (True, False):
        with torch.no_grad(), tap(net.train(mode), "blocks.1.norm1", "blocks.1.self_attn", *names) as seen:
            net(x)
        parts = F.linear(seen["blocks.1.norm1"], attention.in_proj_weight, attention.in_proj_bias).split(24, 2)
        for name, part in zip(names, parts, strict=True):
            torch.testing.assert_close(seen[name], part)
        q, k, v = (part.reshape(5, 16, 3, 8).transpose(1, 2) for part in parts)
        out = ((q @ k.mT / 8**0.5).softmax(-1) @ v).transpose(1, 2).reshape(5, 16, 24)
        torch.testing.assert_close(seen["blocks.1.self_attn"], attention.out_proj(out).detach())
