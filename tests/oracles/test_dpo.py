"""Winners and losers of pairs: what their two terms add up to, in closed form and as identities."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from limbeck import (
    DMD,
    EDM,
    SGD,
    Denoiser,
    DistillationDPO,
    Draw,
    Incompatible,
    Particles,
    Preference,
    Region,
    Run,
    Teacher,
    distill,
)
from limbeck.objectives.preference.dpo import SIDES
from tests.oracles.exact import F64, Affine, AtRatio, assert_mean, close, descended, gaussian, mixture, tensor


class Ranked(Denoiser):
    """The winner, or the loser, of two draws of N(0, 1) under the preference x: of density 2φ(x)·Φ(±x), noised.

    x given x_t is N(x_t/v, σ²/v), v = 1 + σ², so that the density is 2φ(x_t/√v)·Φ(±x_t/(v·√(1 + σ²/v)))/√v.
    """

    def __init__(self, sign: float):
        super().__init__()
        self.process, self.sign = EDM(), sign
        self.unused = nn.Parameter(torch.zeros(1, dtype=F64))

    def denoise(self, x_t: Tensor, t: Tensor, cond: object = None) -> Tensor:
        v = 1 + t[:, None] ** 2
        k = self.sign / (v * (1 + t[:, None] ** 2 / v) ** 0.5)
        ratio = torch.exp(-((k * x_t) ** 2) / 2) / math.sqrt(2 * math.pi) / torch.special.ndtr(k * x_t)
        return x_t + t[:, None] ** 2 * (-x_t / v + k * ratio) + 0 * self.unused


def started(objective: DistillationDPO, critics: list[Denoiser], batch: int, seed: int, mean: float = 0.0) -> Run:
    """A run on q = N(mean, 1) and p = N(0, 1), with these critics."""
    teacher = gaussian(torch.zeros(1, dtype=F64), torch.eye(1, dtype=F64), EDM())
    student = Affine(tensor(mean), torch.eye(1, dtype=F64))
    run = distill(teacher, student, objective, steps=1, batch=batch, optim=SGD(lr=1.0), seed=seed)
    for side, critic in zip(SIDES, critics, strict=True):
        run.cast.roles[side].module = critic
        run.cast.roles[side].names = tuple(name for name, _ in critic.named_parameters())
        run.cast.roles[side].bind()
    return run


@pytest.mark.parametrize(("win", "lose"), [(1.0, -1.0), (0.2, 1.8), (1.0, 1.0)])
def test_samples_move_along_the_preference_by_the_difference_of_the_weights(win: float, lose: float) -> None:
    """At q = p the field is (lose − win)·∇F, and its mean (lose − win)/√π/v, v = 1 + σ²: the published weights go down.

    For E[−x/v − ∇ln q_w] = −E[x_w]/v = −1/√π/v of winners, and its opposite of losers. The weight makes scores of ε.
    """
    ratio, moved = 0.5, []
    objective = DistillationDPO(win=win, lose=lose, times=AtRatio(ratio))
    for seed in range(40):
        run = started(objective, [Ranked(1.0), Ranked(-1.0)], 2048, seed)
        run.tick()
        moved.append(run.cast.student.a.detach() / ratio**2)  # σ/α·(ε_T − ε_q) = σ²·∇ln(q/p)
    expected = tensor((lose - win) / math.sqrt(math.pi) / (1 + ratio**2))
    if lose == win:
        stacked = torch.stack(moved)
        assert (stacked.mean(0).abs() < 6 * stacked.std(0) / 40**0.5).all()
    else:
        assert_mean(moved, expected)


@dataclass(frozen=True, kw_only=True)
class Never(Preference):
    """Nobody is preferred, so that the tick's own sample wins."""

    def __call__(self, x: Tensor, cond: object) -> Tensor:
        return x.new_zeros(len(x))


def critics() -> list[Denoiser]:
    """Two that differ from the teacher and from each other."""
    return [gaussian(tensor(m), tensor([s]), EDM()).clone(trainable=True) for m, s in ((0.3, 0.8), (-0.4, 1.1))]


def moved(objective: DistillationDPO) -> Tensor:
    """Where the mean of the student went."""
    run = started(replace(objective, times=AtRatio(0.7)), critics(), 64, 0, mean=0.5)
    run.tick()
    return 0.5 - run.cast.student.a.detach()


def test_each_side_has_its_own_weight() -> None:
    objective = DistillationDPO()
    win, lose = (moved(replace(objective, win=w, lose=v)) for w, v in ((1.0, 0.0), (0.0, 1.0)))
    assert min(win.abs(), lose.abs(), (win - lose).abs()) > 1e-3
    close(moved(objective), win - lose)
    close(moved(replace(objective, win=0.2, lose=1.8)), 0.2 * win + 1.8 * lose)


def test_the_term_of_winners_is_dmd_on_winners_alone() -> None:
    """Where the tick's own samples win, it is DMD with the critic of winners, and that of losers has no part in it."""
    critic = critics()[0]
    teacher = gaussian(torch.zeros(1, dtype=F64), torch.eye(1, dtype=F64), EDM())
    dmd = DMD(fake=Teacher(who="critic"), times=AtRatio(0.7), shape=(), critic_steps=1)
    student = Affine(tensor(0.5), torch.eye(1, dtype=F64))
    expected = descended(dmd, {"teacher": teacher, "critic": critic}, student, batch=64)["a"]
    close(moved(DistillationDPO(preference=Never(), lose=0.0)), expected)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_preferred_sample_wins_and_critics_see_the_same_pairs(sign: float) -> None:
    objective, got = DistillationDPO(preference=Region(along=(sign, 0.5))), list[tuple[Draw, Draw]]()
    student = Affine(tensor(0.1, -0.4), torch.eye(2, dtype=F64))
    run = distill(mixture(0), student, objective, steps=1, batch=64)
    pair = DistillationDPO.pair
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistillationDPO, "pair", lambda self, tick: got.append(pair(self, tick)) or got[-1])
        run.tick()
    (win, lose), again = got
    better = objective.preference(win.x, None) - objective.preference(lose.x, None)
    assert (better >= 0).all() and (better > 0).any()
    assert torch.equal(win.x, again[0].x) and torch.equal(lose.x, again[1].x)


def test_samples_that_are_never_new_are_refused() -> None:
    with pytest.raises(Incompatible, match="a student that draws new samples"):
        distill(mixture(0), Particles(torch.zeros(8, 2)), DistillationDPO(), steps=1, batch=8)
