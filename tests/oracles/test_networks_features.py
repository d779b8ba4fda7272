"""Objectives on pairs of features against formulas written out: attention maps, rotations, features made of a part."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck import (
    MGD,
    AttentionTransfer,
    Dataset,
    FitNets,
    Rng,
    VkD,
    attention_map,
    attention_transfer,
    distill,
    whitened,
)
from limbeck.errors import BadSetting, Incompatible
from limbeck.objectives.networks.orthogonal import rows
from limbeck.objectives.networks.projectors import Projection, Same
from limbeck.objectives.networks.regeneration import Generator, as_map, kept
from limbeck.problems.networks import ConvNet, ViT
from tests.oracles.exact import F64, close, seeds


def features(seed: int, *shape: int) -> Tensor:
    return Rng(("features", seed, shape)).normal(*shape, dtype=F64)


def images() -> Dataset:
    return Dataset(x=Rng("images").normal(32, 1, 8, 8, dtype=F64), y=torch.arange(32) % 3)


def nets() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return ViT(size=8, classes=3, width=12, blocks=2).double(), ConvNet(classes=3, widths=(4, 8)).double()


def first(data: Dataset) -> Tensor:
    """What the first tick of a run with seed 0 sees, eight rows."""
    return data.take(8, Rng((0, 0, "data"), part=slice(0, 8), total=8))["x"]


# Attention


@seeds
@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_attention_transfer_is_two_less_two_cosines(seed: int, power: float) -> None:
    s, t = features(seed, 3, 5, 4, 4), features(seed, 3, 7, 4, 4)
    for i in range(3):
        flat = [(x[i].abs() ** power).sum(0).flatten() for x in (s, t)]
        cos = flat[0] @ flat[1] / (flat[0].norm() * flat[1].norm())
        close(attention_transfer(s, t, power=power)[i], 2 - 2 * cos)


@seeds
def test_attention_knows_neither_scale_nor_order_nor_sign_of_channels(seed: int) -> None:
    s, t = features(seed, 3, 5, 4, 4), features(seed, 3, 7, 4, 4)
    close(attention_transfer(-3 * s[:, torch.randperm(5)], t), attention_transfer(s, t))
    close(attention_map(s).norm(dim=1), torch.ones(3, dtype=F64))


@seeds
def test_tokens_are_maps_row_by_row_to_attention(seed: int) -> None:
    x = features(seed, 3, 5, 4, 4)
    close(attention_map(x.flatten(2).transpose(1, 2)), attention_map(x))


def test_attention_transfer_runs_between_maps_and_tokens_and_refuses_vectors_of_other_lengths() -> None:
    teacher, student = nets()
    pairs = {"blocks.1": "blocks.0"}
    losses = [
        step.losses["attentiontransfer"]
        for step in distill(teacher, student, AttentionTransfer(pairs=pairs), images(), steps=40, batch=32)
    ]
    assert 0 < losses[-1] < 0.8 * losses[0]
    with pytest.raises(Incompatible, match=r"features at places, or vectors of 12 numbers, got \[8, 8\]"):
        distill(teacher, student, AttentionTransfer(pairs={"head:in": "head:in"}), images(), steps=1, batch=8).finish()
    with pytest.raises(BadSetting, match="power must be above 0"):
        AttentionTransfer(pairs=pairs, power=0)


# V_kD


@seeds
def test_whitened_features_are_uncorrelated_and_turned_as_little_as_can_be(seed: int) -> None:
    x = features(seed, 50, 4) @ features(seed + 9, 4, 4) + 3
    w = whitened(x, eps=0.0)
    close(torch.cov(w.T, correction=0), torch.eye(4, dtype=F64), 1e-9)
    turn = torch.linalg.lstsq(x - x.mean(0), w).solution
    close(turn, turn.T, 1e-9)
    assert (torch.linalg.eigvalsh(turn) > 0).all()
    alone = x.clone()
    alone[:, 1:] = 0  # one direction alone has any variance
    assert whitened(alone).isfinite().all()


@pytest.mark.parametrize("whiten", [False, True])
def test_vkd_is_the_smooth_distance_of_turned_features_to_normalised_ones(whiten: bool) -> None:
    teacher, student = nets()
    data = images()
    run = distill(teacher, student, VkD(pairs={"blocks.1": "blocks.0"}, whiten=whiten), data, steps=1, batch=8)
    x = first(data)
    with torch.no_grad():
        # role of one pair
        projector = run.cast.roles["vkd projector blocks.1 → blocks.0"].module[0]  # type: ignore[index]
        student.train()
        s, t = student.blocks(x), teacher.blocks[0](teacher.stem(x).flatten(2).transpose(1, 2) + teacher.places)
        s, t = projector(s).reshape(-1, 12), t.reshape(-1, 12)
        known = t - t.mean(0)
        if whiten:
            values, vectors = torch.linalg.eigh(torch.cov(t.T, correction=0))
            known = known @ vectors @ torch.diag((values + 1e-3) ** -0.5) @ vectors.T
        else:
            known = known / (t.var(0, correction=0) + 1e-5).sqrt()
        far = (s - known).abs()
        expected = torch.where(far < 1, far**2 / 2, far - 0.5).mean()
    assert run.tick().losses["vkd"] == pytest.approx(expected.item(), rel=1e-9)


def test_rows_are_channels_last() -> None:
    x = features(0, 2, 3, 4, 4)
    close(rows(x)[5], x[0, :, 1, 1])
    close(rows(x.flatten(2).transpose(1, 2)), rows(x))


def test_vkd_wants_whole_batches() -> None:
    teacher, student = nets()
    with pytest.raises(Incompatible, match="vkd, which couples its batch, needs whole batches"):
        distill(teacher, student, VkD(pairs={"blocks.1": "blocks.0"}), images(), steps=1, batch=8, accumulate=2)


# MGD


def test_kept_hides_its_share() -> None:
    scores = Rng(0).uniform(20_000)
    assert kept(scores, ratio=0.65).mean().item() == pytest.approx(0.35, abs=0.01)
    assert kept(scores, ratio=0.0).min() == 1


def test_mgd_is_the_sum_of_squares_of_what_is_made_of_a_part() -> None:
    teacher, student = nets()
    data = images()
    objective = MGD(pairs={"blocks.1": "blocks.0"})
    run = distill(teacher, student, objective, data, steps=1, batch=8)
    x = first(data)
    with torch.no_grad():
        # role of one pair: projector and generator
        project, generate = run.cast.roles["mgd generator blocks.1 → blocks.0"].module  # type: ignore[misc]
        student.train()
        tokens = teacher.blocks[0](teacher.stem(x).flatten(2).transpose(1, 2) + teacher.places)
        maps = project(student.blocks(x)).transpose(1, 2).reshape(8, 12, 4, 4)
        scores = Rng((0, 0, (objective, "mask", 0)), part=slice(0, 8), total=8).uniform(8, 1, 4, 4)
        one, two = generate.net[0], generate.net[2]
        made = F.conv2d(maps * (scores >= 0.65), one.weight, one.bias, padding=1).clamp_min(0)
        made = F.conv2d(made, two.weight, two.bias, padding=1)
        target = tokens.transpose(1, 2).reshape(8, 12, 4, 4)
        expected = ((made - target) ** 2).sum((1, 2, 3)).mean()
    assert run.tick().losses["mgd"] == pytest.approx(expected.item(), rel=1e-9)


def test_nothing_of_hidden_features_is_seen_and_an_honest_copy_is_fitnets() -> None:
    """With all hidden the student has no gradient; with nothing hidden and G = 1 it is the hints, summed."""
    teacher, student = nets()
    pairs = {"blocks.1": "blocks.0"}
    run = distill(teacher, student, MGD(pairs=pairs, ratio=1.0), images(), steps=1, batch=8)
    assert run.tick().norms["student"] == 0
    s, t = features(0, 3, 5, 4, 4), features(1, 3, 5, 4, 4)
    mgd, hints = MGD(pairs=pairs), FitNets(pairs=pairs)
    # neither looks at the tick
    close(mgd.value(s, t, None), 80 * hints.value(s, t, None))  # type: ignore[arg-type]


def test_mgd_hides_whole_channels_of_vectors() -> None:
    teacher, student = nets()
    pairs = {"head:in": "head:in"}
    run = distill(teacher, student, MGD(pairs=pairs, over="channels", ratio=0.15), images(), steps=30, batch=32)
    losses = [step.losses["mgd"] for step in run]
    assert losses[-1] < losses[0]
    x = features(0, 3, 5)
    assert as_map(x).shape == (3, 5, 1, 1) and Generator(5).double()(as_map(x)).shape == (3, 5, 1, 1)


def test_wrong_settings_of_mgd_are_refused() -> None:
    with pytest.raises(BadSetting, match="ratio must be between 0 and 1"):
        MGD(pairs={"0": "0"}, ratio=2.0)
    with pytest.raises(BadSetting, match="MGD hides 'places' or 'channels', got 'rows'"):
        # a typo, as a user makes it
        MGD(pairs={"0": "0"}, over="rows")  # type: ignore[arg-type]
    teacher, student = nets()
    objective = MGD(pairs={"blocks.1": "blocks.0"}, projector=Same())
    with pytest.raises(Incompatible, match=r"Same\(\) needs 12 channels, got 8; Projection\(\) would fit"):
        distill(teacher, student, objective, images(), steps=1, batch=8)
    assert isinstance(MGD(pairs={"0": "0"}).projector, Projection)
