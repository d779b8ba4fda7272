"""Recurrences against attention that is written out, and layers that start as what they replace."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from limbeck import Recurrent, Rng, recurrence, unrolled
from limbeck.engine import Prior, Stage
from limbeck.errors import Incompatible
from limbeck.problems.digits_classify import DigitsClassify
from limbeck.problems.digits_vit import DigitsViT
from limbeck.recipes.k_arch.matvlm import LAYERS, hybrid, recipe
from limbeck.rng import seeded
from tests.oracles.exact import F64, close, seeds


def parts(seed: int, n: int = 7) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = Rng(("recurrence", seed))
    c, b, x = (rng.normal(2, 3, n, width, dtype=F64) for width in (4, 4, 5))
    return c, b, x, rng.uniform(2, 3, n)


def layer(**settings: bool) -> nn.TransformerEncoderLayer:
    with seeded("layer"):
        made = nn.TransformerEncoderLayer(12, 3, 16, 0.0, **{"batch_first": True, "norm_first": True, **settings})
    nn.init.normal_(made.self_attn.in_proj_bias)
    return made.to(F64)


@seeds
def test_without_decay_the_recurrence_is_linear_attention(seed: int) -> None:
    c, b, x, _ = parts(seed)
    attention = torch.einsum("zhnd,zhmd->zhnm", c, b).tril()
    close(recurrence(c, b, x, torch.ones(2, 3, 7, dtype=F64)), attention @ x, 1e-10)
    single = [part.float() for part in (c, b, x)]
    torch.testing.assert_close(
        recurrence(*single, torch.ones(2, 3, 7)),
        (attention @ x).float(),
        rtol=0,
        atol=1e-5 * attention.abs().max().item(),
    )


@seeds
def test_unrolled_it_is_the_same(seed: int) -> None:
    c, b, x, decay = parts(seed)
    close(unrolled(c, b, x, decay), recurrence(c, b, x, decay), 1e-10)
    forgets = decay * (torch.arange(decay.shape[2]) % 3 > 0)  # to nothing, at every third token
    close(unrolled(c, b, x, forgets), recurrence(c, b, x, forgets), 1e-10)


@seeds
def test_decays_between_two_tokens_multiply(seed: int) -> None:
    c, b, x, decay = parts(seed)
    x[:, :, 1:] = 0
    expected = decay[:, :, 1:4].prod(2)[..., None] * (c[:, :, 3] * b[:, :, 0]).sum(-1, keepdim=True) * x[:, :, 0]
    close(recurrence(c, b, x, decay)[:, :, 3], expected, 1e-10)


def test_with_copied_weights_it_is_linear_attention_of_the_layer() -> None:
    """Its decays at 1 and its steps at 1: queries, keys, values and the output as the layer has them, no softmax."""
    old, tokens = layer(), Rng(0).normal(2, 6, 12, dtype=F64)
    new = Recurrent(old).to(F64)
    with torch.no_grad():
        new.gates.bias[3:] = torch.tensor(1.0, dtype=F64).expm1().log()  # softplus⁻¹(1)
        new.gates.bias[:3] = 60.0
    h = old.norm1(tokens)
    weight, bias = old.self_attn.in_proj_weight, old.self_attn.in_proj_bias
    q, k, v = ((h @ w.T + a).unflatten(-1, (3, 4)) for w, a in zip(weight.chunk(3), bias.chunk(3), strict=True))
    scores = torch.einsum("znhd,zmhd->zhnm", q, k) / 2
    scores = scores + torch.diag_embed(scores.diagonal(dim1=2, dim2=3))  # both directions see the token itself
    mixed = torch.einsum("zhnm,zmhd->znhd", scores, v).flatten(2)
    seen = tokens + old.self_attn.out_proj(mixed)
    expected = seen + old.linear2(old.activation(old.linear1(old.norm2(seen))))
    torch.testing.assert_close(new(tokens), expected, rtol=0, atol=1e-5)


def test_fresh_ones_share_no_queries() -> None:
    old = layer()
    copied, fresh = (Recurrent(old, copied=copied) for copied in (True, False))
    assert torch.equal(copied.inputs.weight, old.self_attn.in_proj_weight.float())
    assert not torch.equal(fresh.inputs.weight, copied.inputs.weight)
    assert torch.equal(fresh.out.weight, old.self_attn.out_proj.weight)


def test_only_recurrences_learn() -> None:
    problem = DigitsViT()
    stage = recipe(problem).stages[-1]
    assert isinstance(stage, Stage)
    run = stage.start(problem, Prior(Path()), 0)
    before = {name: p.detach().clone() for name, p in run.student.named_parameters()}
    run.tick()
    moved = {name for name, p in run.student.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all(name.startswith(tuple(f"blocks.{k}." for k in LAYERS)) for name in moved)
    assert not any(".rest." in name for name in moved)
    assert any("inputs" in name for name in moved) and any("gates" in name for name in moved)


def test_mistakes_are_refused() -> None:
    with pytest.raises(Incompatible, match="needs a layer with its norm, and the batch, first, got norm_first=False"):
        Recurrent(layer(norm_first=False))
    with pytest.raises(Incompatible, match="got batch_first=False"):
        Recurrent(layer(batch_first=False))
    with pytest.raises(Incompatible, match="matvlm needs a problem whose teacher is a ViT, got digits-classify"):
        hybrid()(DigitsClassify(), Prior(Path()))
