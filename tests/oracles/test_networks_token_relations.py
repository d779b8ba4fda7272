"""Attention that is partly the teacher's, relations of tokens, networks within networks: against sums written out."""

from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck import Dataset, PartialCrossAttention, Relations, Rng, distill, relation, relation_kl
from limbeck.engine.taps import tap
from limbeck.engine.tick import Tick
from limbeck.errors import BadSetting, Incompatible
from limbeck.objectives.networks.crossing import attention, mixed_in, value_relations
from limbeck.problems.elastic import ElasticViT
from limbeck.problems.networks import ConvNet, ViT
from tests.oracles.exact import F64, close, seeds

PARTS = tuple(f"blocks.2.self_attn.{part}" for part in ("queries", "keys", "values"))


def normal(name: object, *shape: int) -> Tensor:
    return Rng(("relations", name)).normal(*shape, dtype=F64)


def tick(seed: int) -> Tick:
    """A tick of which a loss looks at random numbers alone."""
    return cast(Tick, SimpleNamespace(rng=lambda name: Rng((seed, "tick", str(name)))))


# Attention that is partly the teacher's


@seeds
def test_attention_is_torchs(seed: int) -> None:
    q, k, v = (normal((seed, name), 3, 5, 6) for name in "qkv")
    by_head = (x.view(3, 5, 2, 3).transpose(1, 2) for x in (q, k, v))
    close(attention((q, k, v), heads=2), F.scaled_dot_product_attention(*by_head).transpose(1, 2).reshape(3, 5, 6))


@seeds
def test_the_loss_is_the_sum_written_out_where_nothing_is_replaced(seed: int) -> None:
    ours, theirs = ([normal((seed, who, k), 3, 4, 6) for k in range(3)] for who in "st")
    found = PartialCrossAttention(tap="0", parts=PARTS, share=0.0).value(ours, theirs, tick(seed))
    outs, products = [], []
    for q, k, v in (ours, theirs):
        outs.append((q @ k.mT / 6**0.5).softmax(2) @ v)
        products.append(v @ v.mT / 6**0.5)
    close(found, sum(((a - b) ** 2).flatten(1).mean(1) for a, b in (outs, products)))


@seeds
def test_where_all_is_replaced_only_the_relations_of_values_are_left(seed: int) -> None:
    ours, theirs = ([normal((seed, who, k), 3, 4, 6) for k in range(3)] for who in "st")
    found = PartialCrossAttention(tap="0", parts=PARTS, share=1.0).value(ours, theirs, tick(seed))
    left = ((value_relations(ours[2]) - value_relations(theirs[2])) ** 2).flatten(1).mean(1)
    close(found, left)
    close(
        PartialCrossAttention(tap="0", parts=PARTS, share=1.0).value([*ours[:2], theirs[2]], theirs, tick(seed)),
        0 * left,
    )


def test_so_many_numbers_are_replaced() -> None:
    x = mixed_in(torch.zeros(100, 100), torch.ones(100, 100), Rng(0).uniform(100, 100), 0.3)
    assert set(x.unique().tolist()) == {0.0, 1.0} and x.mean().item() == pytest.approx(0.3, abs=0.02)


def nets() -> tuple[ViT, ConvNet, Dataset]:
    torch.manual_seed(0)
    return ViT(size=8, classes=3, width=8), ConvNet(classes=3, widths=(4, 5)), Dataset(x=torch.randn(16, 1, 8, 8))


def test_student_and_convolutions_learn_from_attention() -> None:
    teacher, student, data = nets()
    run = distill(
        teacher, student, PartialCrossAttention(tap="blocks.1", parts=PARTS, heads=4), data, steps=40, batch=16
    )
    first, *_, last = (step.losses["partialcrossattention"] for step in run)
    assert last < 0.9 * first and all(p.grad is None for p in teacher.parameters())


def test_a_wrong_attention_is_refused() -> None:
    teacher, student, data = nets()
    with pytest.raises(BadSetting, match="PartialCrossAttention needs a tap of the student and three parts"):
        PartialCrossAttention(tap="blocks.1", parts=PARTS[:2])
    with pytest.raises(BadSetting, match="share must be between 0 and 1"):
        PartialCrossAttention(tap="blocks.1", parts=PARTS, share=1.5)
    with pytest.raises(Incompatible, match="heads that divide the 8 channels"):
        distill(teacher, student, PartialCrossAttention(tap="blocks.1", parts=PARTS, heads=3), data, steps=1)


# Relations


@seeds
def test_relations_are_the_divergences_written_out(seed: int) -> None:
    s, t = normal((seed, "s"), 2, 5, 6), normal((seed, "t"), 2, 5, 8)
    found = relation_kl(relation(s, s, heads=2), relation(t, t, heads=2))
    for i in range(2):
        total = torch.zeros((), dtype=F64)
        for head in range(2):
            for row in range(5):
                a, b = (x[i, :, head * d : (head + 1) * d] for x, d in ((s, 3), (t, 4)))
                p, q = ((x @ x[row] / x.shape[1] ** 0.5).softmax(0) for x in (b, a))
                total = total + (p * (p.log() - q.log())).sum()
        close(found[i], total / 10)


@seeds
def test_a_relation_of_queries_and_keys_is_attention(seed: int) -> None:
    q, k, v = (normal((seed, name), 2, 5, 6) for name in "qkv")
    close(relation(q, k).exp()[:, 0] @ v, attention((q, k, v)))


@seeds
def test_relations_do_not_know_a_rotation(seed: int) -> None:
    x, turn = normal(seed, 2, 5, 6), torch.linalg.qr(normal((seed, "turn"), 6, 6)).Q
    assert relation_kl(relation(x, x), relation(x @ turn, x @ turn)).abs().max() < 1e-12


def pairs(mine: int = 0, theirs: int = 2) -> dict[str, str]:
    parts = ("queries", "keys", "values")
    return {f"blocks.{mine}.self_attn.{part}": f"blocks.{theirs}.self_attn.{part}" for part in parts}


def test_relations_of_other_widths_and_heads_are_learned_without_a_projector() -> None:
    teacher, _, data = nets()
    student = ViT(size=8, classes=3, width=12, blocks=1, heads=2)
    run = distill(teacher, student, Relations(pairs=pairs(), heads=4), data, steps=60, batch=16)
    first, *_, last = (step.losses["relations"] for step in run)
    assert last < first and sorted(run.cast.roles) == ["student"]
    assert all(p.grad is None for p in teacher.parameters())


def test_wrong_relations_are_refused() -> None:
    teacher, _, data = nets()
    with pytest.raises(BadSetting, match="Relations needs pairs of taps"):
        Relations()
    with pytest.raises(Incompatible, match="heads that divide 12 channels, got 5"):
        distill(teacher, ViT(size=8, classes=3, width=12), Relations(pairs=pairs(), heads=5), data, steps=1).finish()
    with pytest.raises(Incompatible, match="a student with 16 tokens, got 4"):
        distill(teacher, ViT(size=8, patch=4, classes=3), Relations(pairs=pairs()), data, steps=1)


# Networks within networks


def elastic() -> ElasticViT:
    torch.manual_seed(0)
    return ElasticViT(side=8, classes=3, sizes=((8, 1), (16, 2), (8, 3)))


@pytest.mark.parametrize("size", [(8, 1), (16, 2), (8, 3), (16, 3)], ids=str)
def test_what_is_taken_out_is_what_was_inside(size: tuple[int, int]) -> None:
    net, x = elastic().eval(), torch.randn(4, 1, 8, 8)
    net.size = size
    names = [f"blocks.{size[1] - 1}.self_attn.{part}" for part in ("queries", "keys", "values")]
    with tap(net, "last.queries", "last.keys", "last.values") as inside:
        logits = net(x)
    out = net.extract(size).eval()
    with tap(out, *names) as outside:
        torch.testing.assert_close(out(x), logits)
    for part, name in zip(("queries", "keys", "values"), names, strict=True):
        torch.testing.assert_close(inside[f"last.{part}"], outside[name])


def test_queries_keys_and_values_are_cut_each_by_itself() -> None:
    whole, small = elastic(), elastic().extract((8, 1))
    name = "blocks.0.self_attn.in_proj_weight"
    expected = whole.whole.get_parameter(name).view(3, 16, 16)[:, :8, :8].reshape(24, 8)
    assert torch.equal(small.get_parameter(name), expected)


def test_only_the_weights_of_the_drawn_size_learn() -> None:
    net = elastic()
    net.sizes = ((8, 1),)
    net.train()(torch.randn(4, 1, 8, 8)).sum().backward()
    inside = {name: p.shape for name, p in net.extract((8, 1)).named_parameters()}
    for name, p in net.whole.named_parameters():
        if name not in inside:
            assert p.grad is None
        elif "in_proj" not in name:
            moved = p.grad.clone()
            moved[tuple(slice(n) for n in inside[name])] = 0
            assert not moved.any()


def test_every_size_is_drawn_as_it_learns() -> None:
    net, seen = elastic().train(), set[tuple[int, ...]]()
    for _ in range(40):
        with tap(net, "last.keys") as last:
            net(torch.zeros(2, 1, 8, 8))
        seen.add(last["last.keys"].shape[2:])
    assert seen == {(8,), (16,)} and isinstance(net.last, nn.Module)
