"""Correspondence: similarities of places, matches by affine maps, and who is followed."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck import (
    Correspondence,
    Drawn,
    Matches,
    Objective,
    Rng,
    correspondence_loss,
    distill,
    match_loss,
    similarity,
)
from limbeck.errors import BadSetting, Incompatible
from limbeck.problems.digits import Jitter
from limbeck.problems.digits_matches import NOWHERE, DigitsMatches, centres, matches, moved_to
from tests.oracles.exact import F64, close, descended, seeds


def drawn(*shape: int, seed: object) -> Tensor:
    return Rng(("correspondence", seed)).normal(*shape, dtype=F64)


def conv(seed: int, out: int = 3) -> nn.Conv2d:
    net = nn.Conv2d(1, out, 1, dtype=F64)
    with torch.no_grad():
        net.weight.copy_(drawn(out, 1, 1, 1, seed=(seed, out, "weight")))
        net.bias.copy_(drawn(out, seed=(seed, out, "bias")))  # type: ignore[union-attr]
    return net


def net(seed: int, out: int = 3) -> nn.Sequential:
    return nn.Sequential(conv(seed, out))


def views(seed: int) -> tuple[Tensor, Tensor]:
    return drawn(5, 1, 3, 2, seed=(seed, "x")), drawn(5, 1, 3, 2, seed=(seed, "pair"))


def data(seed: int, **more: Tensor) -> Drawn:
    """All rows in every batch, in order."""
    x, pair = views(seed)
    return Drawn(lambda n, rng: {"x": x, "pair": pair, **more}, fields=("x", "pair", *more))


# similarities


@seeds
def test_similarities_are_cosines_of_places(seed: int) -> None:
    one, other = drawn(2, 4, 3, 2, seed=(seed, 1)), drawn(2, 4, 3, 2, seed=(seed, 2))
    got = similarity(one, other)
    for i in range(6):
        for j in range(6):
            a, b = one[1, :, i // 2, i % 2], other[1, :, j // 2, j % 2]
            close(got[1, i, j], a @ b / a.norm() / b.norm())


@seeds
def test_the_mean_over_teachers_is_the_cosine_of_their_features_side_by_side(seed: int) -> None:
    one, other = ([drawn(2, 5, d, seed=(seed, d, k)) for d in (3, 4)] for k in (1, 2))
    mean = sum(similarity(a, b) for a, b in zip(one, other, strict=True)) / 2
    fused = (torch.cat([F.normalize(z, dim=-1) for z in seen], -1) for seen in (one, other))
    close(mean, similarity(*fused))


# losses


@seeds
@pytest.mark.parametrize("tau", [0.05, 1.0])
def test_the_loss_is_a_divergence_over_places_of_the_second_image(seed: int, tau: float) -> None:
    s, t = drawn(2, 3, 4, seed=(seed, "s")), drawn(2, 3, 4, seed=(seed, "t"))
    expected = torch.zeros(2, dtype=F64)
    for b in range(2):
        for i in range(3):
            p, q = (x[b, i].div(tau).softmax(0) for x in (t, s))
            expected[b] += (p * (p.log() - q.log())).sum() / 3
    close(correspondence_loss(s, t, temperature=tau), expected)
    close(correspondence_loss(t + 3, t, temperature=tau), torch.zeros(2, dtype=F64))


@seeds
def test_the_gradient_is_that_of_softmax(seed: int) -> None:
    s, t = drawn(1, 3, 4, seed=(seed, "s")).requires_grad_(), drawn(1, 3, 4, seed=(seed, "t")).requires_grad_()
    correspondence_loss(s, t, temperature=0.5).sum().backward()
    assert s.grad is not None and t.grad is None
    close(s.grad, ((s / 0.5).softmax(-1) - (t / 0.5).softmax(-1)).detach() / 0.5 / 3)


@seeds
def test_matches_that_are_nowhere_do_not_count(seed: int) -> None:
    s, match = drawn(2, 3, 4, seed=seed), torch.tensor([[2, NOWHERE, 0], [NOWHERE] * 3])
    p = (s / 0.1).log_softmax(-1)
    close(match_loss(s, match, temperature=0.1), torch.stack([-(p[0, 0, 2] + p[0, 2, 0]) / 2, 0 * p[0, 0, 0]]))


@seeds
def test_sure_teachers_are_known_matches(seed: int) -> None:
    """Similarities that single one place out: the divergence is the cross-entropy of that place."""
    s, match = drawn(2, 3, 4, seed=seed), torch.tensor([[2, 1, 0], [3, 3, 1]])
    t = 1e4 * F.one_hot(match, 4).to(F64)
    close(correspondence_loss(s, t, temperature=0.1), match_loss(s, match, temperature=0.1))


# objectives


@seeds
def test_a_student_follows_the_mean_of_two_teachers(seed: int) -> None:
    teachers, student, source = {"teacher": net(seed + 1, 4), "second": net(seed + 2, 2)}, net(seed), data(seed)
    mean = sum(similarity(*(one(x) for x in views(seed))) for one in teachers.values()) / 2
    loss = correspondence_loss(similarity(*(student(x) for x in views(seed))), mean, temperature=0.3).mean()
    (grad,) = torch.autograd.grad(loss, student[0].weight)
    objective = Correspondence(teachers={"teacher": "0", "second": "0"}, tap="0", temperature=0.3)
    moved = descended(objective, teachers, student, source, batch=5)
    close(moved["0.weight"], grad)


@seeds
def test_a_student_learns_known_matches(seed: int) -> None:
    student, match = net(seed), Rng(("match", seed)).integers(30, 6).view(5, 6)
    source = data(seed, match=match)
    pair = (student(x) for x in views(seed))
    (grad,) = torch.autograd.grad(match_loss(similarity(*pair), match, temperature=0.3).mean(), student[0].weight)
    moved = descended(Matches(tap="0", temperature=0.3), None, student, source, batch=5)
    close(moved["0.weight"], grad)


# known matches


@seeds
def test_a_match_is_where_both_views_show_the_same(seed: int) -> None:
    """A·u + b = A'·v + b' of the v that is found."""
    x, made = torch.zeros(4, 1, 8, 8, dtype=F64), Jitter(turn=30.0, scale=0.2)
    one, other = (made.draw(x, Rng((seed, k)))["affine"] for k in range(2))
    v, u = moved_to(one, other), centres().to(F64)
    for b in range(4):
        close(u @ one[b, :, :2].T + one[b, :, 2], v[b] @ other[b, :, :2].T + other[b, :, 2])


def test_a_quarter_turn_moves_pixels_as_a_turned_image_does() -> None:
    """The picture moves with the match: what the first view has at i, the second has at its match."""
    x = drawn(1, 1, 8, 8, seed="turn")
    same = torch.eye(2, 3, dtype=F64)[None]
    turn = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]], dtype=F64)
    turned = F.grid_sample(x, F.affine_grid(turn, [1, 1, 8, 8], align_corners=False), align_corners=False)
    found = matches(moved_to(same, turn) + 1e-9, torch.ones(1, 64).bool())
    assert sorted(found[0].tolist()) == list(range(64))
    close(turned.flatten()[found[0]], x.flatten())


def test_right_matches_miss_nothing_and_random_ones_most() -> None:
    problem = DigitsMatches()
    assert problem.missed(problem.heldout["match"].clamp_min(0)) == 0
    assert problem.missed(problem.heldout["match"].clamp_min(0) ^ 1) == 0  # a pixel off
    assert problem.missed(problem.heldout["match"].clamp_min(0) ^ 2) == 1  # two off
    assert problem.missed(torch.full((497, 64), 63)) > 0.9


# mistakes


@pytest.mark.parametrize(
    "made",
    [
        lambda: Correspondence(teachers={"teacher": "0"}),
        lambda: Correspondence(tap="0"),
        lambda: Matches(tap="0", temperature=0.0),
        lambda: Matches(),
    ],
)
def test_settings_that_mean_nothing_are_refused(made: Any) -> None:
    with pytest.raises(BadSetting):
        made()


@pytest.mark.parametrize(
    ("objective", "teachers"),
    [
        (Correspondence(teachers={"second": "0"}, tap="0"), {"teacher": net(1)}),
        (Correspondence(teachers={"teacher": "9"}, tap="0"), {"teacher": net(1)}),
        (Correspondence(teachers={"teacher": "0"}, tap="0", pair="other"), {"teacher": net(1)}),
        (Matches(tap="0"), None),
    ],
)
def test_what_is_missing_is_said(objective: Objective, teachers: Any) -> None:
    with pytest.raises(Incompatible):
        distill(teachers, net(0), objective, data(0), steps=1, batch=5)


def test_other_numbers_of_places_are_refused() -> None:
    with pytest.raises(Incompatible, match="places"):
        correspondence_loss(torch.zeros(1, 2, 3), torch.zeros(1, 3, 3))
    assert math.isfinite(correspondence_loss(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)).item())
