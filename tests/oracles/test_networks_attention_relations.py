"""Where tokens look and which values are alike, of student and teacher: against sums written out."""

from itertools import product

import pytest
import torch
from torch import Tensor

from limbeck import Dataset, MiniLM, Relations, Rng, attention_kl, distill, relation
from limbeck.engine.taps import tap
from limbeck.errors import BadSetting, Incompatible
from limbeck.problems.networks import ViT
from tests.oracles.exact import F64, close, seeds

PARTS = ("queries", "keys", "values")


def normal(name: object, *shape: int) -> Tensor:
    return Rng(("attention", name)).normal(*shape, dtype=F64)


def three(name: object, width: int) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (normal((name, part), 3, 5, width) for part in PARTS)
    return q, k, v


def pairs(mine: int = 0, theirs: int = 2, parts: tuple[str, ...] = PARTS) -> dict[str, str]:
    return {f"blocks.{mine}.self_attn.{part}": f"blocks.{theirs}.self_attn.{part}" for part in parts}


def nets() -> tuple[ViT, ViT, Dataset]:
    torch.manual_seed(0)
    teacher, student = ViT(size=8, classes=3).double(), ViT(size=8, classes=3, width=12, blocks=2).double()
    return teacher, student, Dataset(x=normal("x", 16, 1, 8, 8), y=torch.arange(16) % 3)


@seeds
def test_the_loss_is_the_sum_written_out(seed: int) -> None:
    ours, theirs = three((seed, "s"), 6), three((seed, "t"), 8)
    found, heads = attention_kl(ours, theirs, heads=2), 2
    for b in range(3):
        expected = 0.0
        for first, second in ((0, 1), (2, 2)):
            for head, row in product(range(heads), range(5)):
                rows = []
                for parts, d in ((ours, 3), (theirs, 4)):
                    at = slice(head * d, head * d + d)
                    scores = torch.stack([parts[first][b, row, at] @ parts[second][b, n, at] for n in range(5)])
                    rows.append((scores / d**0.5).exp() / (scores / d**0.5).exp().sum())
                s, t = rows
                expected = expected + (t * (t / s).log()).sum() / (heads * 5)
        close(found[b], expected)


def test_only_the_same_attention_and_values_lose_nothing() -> None:
    q, k, v = three("s", 8)
    close(attention_kl((q, k, v), (q, k, v), heads=2), torch.zeros(3, dtype=F64))
    close(attention_kl((2 * q, k / 2, -v), (q, k, v), heads=2), torch.zeros(3, dtype=F64), 1e-10)
    for other in ((-q, k, v), (q, -k, v), (q, k, 2 * v), (k, q, v)):
        assert bool((attention_kl(other, (q, k, v), heads=2) > 1e-3).all())


def test_relations_of_queries_and_keys_are_the_weights_that_attention_has() -> None:
    teacher, _, data = nets()
    attention = "blocks.2.self_attn"
    names = [f"{attention}.{part}" for part in PARTS]
    with torch.no_grad(), tap(teacher, f"{attention}.out_proj:in", *names) as seen:
        teacher(data.take(4, Rng(0))["x"])
        q, k, v = (seen[name] for name in names)
        out = relation(q, k, heads=4).exp() @ v.unflatten(2, (4, -1)).transpose(1, 2)
    close(out.permute(2, 0, 1, 3).flatten(), seen[f"{attention}.out_proj:in"].flatten())


def test_gradient_goes_to_the_student_alone() -> None:
    ours, theirs = (tuple(x.requires_grad_() for x in three(who, 8)) for who in "st")
    attention_kl(ours, theirs, heads=2).sum().backward()  # type: ignore[arg-type]
    assert all(x.grad is not None and bool(x.grad.abs().sum() > 0) for x in ours)
    assert all(x.grad is None for x in theirs)


def test_a_run_loses_the_sum_over_blocks_of_what_is_tapped() -> None:
    teacher, student, data = nets()
    taught = pairs(0, 1) | pairs(1, 2)
    x = data.take(8, Rng((0, 0, "data"), part=slice(0, 8), total=8))["x"]
    with torch.no_grad(), tap(student, *taught) as seen, tap(teacher, *taught.values()) as known:
        student(x), teacher(x)
    expected = torch.zeros(8, dtype=F64)
    for mine, theirs in ((0, 1), (1, 2)):
        s, t = ([f[name] for name in pairs(n, n)] for f, n in ((seen, mine), (known, theirs)))
        expected += attention_kl((s[0], s[1], s[2]), (t[0], t[1], t[2]), heads=4)
    run = distill(teacher, student, MiniLM(pairs=taught, heads=4), data, steps=40, batch=8)
    losses = [step.losses["minilm"] for step in run]
    assert losses[0] == pytest.approx(expected.mean().item(), rel=1e-9) and losses[-1] < losses[0]
    assert sorted(run.cast.roles) == ["student"] and all(p.grad is None for p in teacher.parameters())


def test_where_queries_are_keys_and_values_it_is_twice_the_relations() -> None:
    teacher, student, data = nets()
    one = {"blocks.0": "blocks.1"}
    thrice = MiniLM(pairs=(*one.items(),) * 3, heads=2)
    run = distill(teacher, student, thrice + Relations(pairs=one, heads=2), data, steps=1, batch=8)
    losses = next(iter(run)).losses
    assert losses["minilm"] == pytest.approx(2 * losses["relations"], rel=1e-9)


def test_wrong_attention_is_refused_before_it_runs() -> None:
    teacher, student, data = nets()

    def start(pairs: dict[str, str], net: ViT = student, heads: int = 4) -> None:
        distill(teacher, net, MiniLM(pairs=pairs, heads=heads), data, steps=1)

    for few in ({}, pairs(parts=PARTS[:2])):
        with pytest.raises(BadSetting, match=f"queries, keys and values for each block, got {len(few)} pairs"):
            MiniLM(pairs=few)
    with pytest.raises(BadSetting, match="heads"):
        MiniLM(pairs=pairs(), heads=0)
    with pytest.raises(Incompatible, match="heads that divide 12 channels, got 5"):
        start(pairs(), heads=5)
    with pytest.raises(Incompatible, match="a student with 16 tokens, got 4"):
        start(pairs(), ViT(size=8, patch=4, classes=3).double())
    with pytest.raises(Incompatible, match=r"one shape, got \[16, 12\], \[16, 24\], \[16, 12\]"):
        start(dict(zip(("blocks.0.norm1", "blocks.0.linear1", "blocks.0.norm2"), pairs().values(), strict=True)))
    with pytest.raises(Incompatible):
        start(pairs(7))
