"""Distillation with pairs: a student's preferred samples and the others are matched to the teacher, each for itself."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.guidance import Guidance
from limbeck.diffusion.process import like
from limbeck.diffusion.times import LogNormal, Times
from limbeck.engine.objective import Loss, Objective, Term
from limbeck.engine.roles import Cast
from limbeck.engine.student import Draw, Student
from limbeck.engine.tick import Tick, same_buffers
from limbeck.errors import Incompatible, in_range
from limbeck.objectives.preference.rewards import Direction, Preference
from limbeck.objectives.score.critic import denoising
from limbeck.objectives.score.distillation import along
from limbeck.objectives.score.parts import Weight
from limbeck.students.generator import FewStep

SIDES = ("winners", "losers")


@dataclass(frozen=True, kw_only=True)
class DistillationDPO(Objective):
    """Distillation-DPO: winners descend win·KL(q_w‖p), losers lose·KL(q_l‖p), each with a critic of its own.

    A pair is two samples under one condition; a preference, which needs no slope, says which of them wins, and both get
    the same noise: g = win·w(t)·(ε_T − ε_winners) at winners, lose·w(t)·(ε_T − ε_losers) at losers. A sample x of
    density q beats another with probability F(x), winners have the density 2Fq, and with exact critics samples move by

        v = (win·F + lose·(1 − F))·∇ln(p/q) + (lose − win)·∇F.

    Weights of 1 are twice `DMD` in expectation. The published ones, 1 and −1, push samples *down* the preference, 2∇F,
    and those that lose more than they win away from the teacher. Two positive weights with lose > win climb it to
    q ∝ p/(lose − (lose − win)·F). (In the released code x_t − x stands in the place of x, so that the samples cancel.)

    Args:
        preference: ranks the two samples of a pair.
        win: weight at winners.
        lose: weight at losers.
        weight: w; by default that of `DMD`, which makes g a difference of x0.
        times: noise levels.
        critic_times: noise levels that the critics learn at.
        guidance: on the teacher.
        critic_steps: steps of the critics to one of the student.

    Raises:
        Incompatible: a teacher that is no `Denoiser`, a student of a fixed number of samples or several steps.

    Source: Zhao et al. 2025, arXiv 2504.11447, and its released code, which has two critics.

    >>> from limbeck import GaussianMixture, OneStep, distill
    >>> teacher = GaussianMixture(means=torch.ones(1, 2), std=0.5)
    >>> student = OneStep(teacher.clone(trainable=True), shape=(2,))
    >>> sorted(next(iter(distill(teacher, student, DistillationDPO(), steps=1, batch=8))).losses)
    ['distillationdpo', 'ranked']
    """

    preference: Preference = Direction()
    win: float = 1.0
    lose: float = -1.0
    weight: Weight = field(default_factory=lambda: Weight(sigma=1.0, alpha=-1.0))
    times: Times = field(default_factory=LogNormal)
    critic_times: Times = field(default_factory=LogNormal)
    guidance: Guidance | None = None
    critic_steps: int = 1

    def __post_init__(self) -> None:
        in_range("critic_steps", self.critic_steps, 1)

    def check(self, cast: Cast) -> None:
        cast.need("teacher", Denoiser, by=self)
        student = cast.need("student", Student, by=self)
        if student.size is not None:
            got = f"a {type(student).__name__} of {student.size}"
            raise Incompatible("DistillationDPO", need="a student that draws new samples", got=got, fit="OneStep")
        if isinstance(student, FewStep) and (steps := len(student.ratios)) > 1:
            raise Incompatible("DistillationDPO", need="a student of one step", got=f"one of {steps}", fit="OneStep")

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        teacher = cast.need("teacher", Denoiser, by=self)
        for side in SIDES:
            cast.role(side, lambda: teacher.clone(trainable=True), spec=self)

        def ranked(tick: Tick) -> Iterator[Loss]:
            for side, draw in zip(SIDES, self.pair(tick), strict=True):
                seen = tick.at(draw, self.critic_times, (self, side))
                x0 = tick.denoise(side, seen, grad=True)
                yield Loss(denoising(x0, seen.x, seen.t, seen.process, teacher.sigma_data))

        return (
            Term("ranked", SIDES, ranked, of=self),
            Term("distillationdpo", "student", self.loss, every=self.critic_steps, of=self),
        )

    def loss(self, tick: Tick) -> Loss:
        """The student's loss, `along` g at both samples of each pair."""
        sides = zip(SIDES, (self.win, self.lose), self.pair(tick), strict=True)
        parts = [along(draw.x, weight * self.gradient(tick, side, draw.x)) for side, weight, draw in sides]
        return Loss(parts[0] + parts[1])

    def gradient(self, tick: Tick, side: str, x: Tensor) -> Tensor:
        """w(t)·(ε_T − ε_side) at these samples under the noise of the tick's own, [B, …]."""
        seen = tick.noised(self.times).detached()
        x = x.detach()
        here = replace(seen, x=x, x_t=seen.process.add_noise(x, seen.eps, seen.t), key=None)
        real, fake = tick.denoise("teacher", here, self.guidance), tick.denoise(side, here)
        return like(self.weight.at(seen.t, seen.process), x) * (here.eps_of(real) - here.eps_of(fake))

    def pair(self, tick: Tick) -> tuple[Draw, Draw]:
        """The winner and the loser of each row; of equals the tick's own sample wins."""
        one, student = tick.draw(), tick.cast.need("student", Student, by=self)
        learns = "student" in tick.trains
        buffers = tick.cast.roles["student"].buffers  # running statistics have seen the first draw already
        with tick.seeded("other of the pair"), torch.set_grad_enabled(learns), same_buffers(buffers):
            other = student.draw(tick.size, tick.batch.get("cond"), tick.rng("other of the pair"))
        first = self.preference(one.x.detach(), one.cond) >= self.preference(other.x.detach(), one.cond)
        rows = first.reshape(-1, *[1] * (one.x.dim() - 1))
        return (
            replace(one, x=torch.where(rows, one.x, other.x)),
            replace(one, x=torch.where(rows, other.x, one.x)),
        )
