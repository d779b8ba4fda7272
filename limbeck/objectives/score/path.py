"""Score distillation along a student's own path: noise that goes on from where its step ended."""

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from limbeck.diffusion.process import Process, like
from limbeck.diffusion.times import Times, Uniform
from limbeck.engine.roles import Cast
from limbeck.engine.student import Draw
from limbeck.engine.tick import Noised, Tick
from limbeck.errors import in_range
from limbeck.objectives.score.critic import Critic
from limbeck.objectives.score.distillation import ScoreDistillation
from limbeck.objectives.score.noise import Noise
from limbeck.objectives.score.parts import Fake, Gradient, Part, PerSample, Shape, Weight
from limbeck.rng import Rng
from limbeck.students.trajectory import Trajectory


@dataclass(frozen=True, kw_only=True)
class Segment(Times):
    """Uniform on the process's clock within the segment (s, t) of the step that made the samples.

    Args:
        lo: where to begin, as a fraction of the segment from s.
        hi: where to end.
        beyond: a ratio σ/α that takes the place of t; for levels beyond the step, up to (almost) pure noise.
        floor: the least ratio σ/α, where s is clean.

    Samples without a segment are looked at on the whole clock.

    Source: the intervals of TDM, arXiv 2503.06674, sec. 4.1; with ``beyond`` those of Phased DMD, arXiv 2510.27684.

    >>> from limbeck.diffusion import EDM, RectifiedFlow
    >>> Segment(lo=1.0).within((0.25, 0.75), 1, RectifiedFlow(), Rng(0)).item()
    0.75
    >>> bool((Segment(beyond=80.0).within((1.0, 2.0), 99, EDM(), Rng(0)) > 2).any())
    True
    """

    lo: float = 0.0
    hi: float = 1.0
    beyond: float | None = None
    floor: float = 0.02

    def __post_init__(self) -> None:
        in_range("lo", self.lo, 0, 1)
        in_range("hi", self.hi, self.lo, 1)
        in_range("floor", self.floor, 1e-9)

    def at(self, u: Tensor, process: Process, progress: float = 0.0) -> Tensor:
        return Uniform(lo=0.0, hi=1.0).at(u, process)

    def within(
        self, segment: tuple[float, float] | None, n: int, process: Process, rng: Rng, progress: float = 0.0
    ) -> Tensor:
        if segment is None:
            return self.sample(n, process, rng, progress)
        ends = torch.tensor(segment, dtype=torch.float64)
        low = process.at_ratio(process.ratio(ends[:1]).clamp_min(self.floor))
        high = ends[1:] if self.beyond is None else process.at_ratio(torch.tensor([self.beyond], dtype=torch.float64))
        a, b = process.fraction(low), process.fraction(torch.maximum(low, high))
        u = rng.uniform(n)
        at = a.to(u) + (self.lo + (self.hi - self.lo) * u) * (b - a).to(u)
        return torch.maximum(process.at_fraction(at), low.to(u))  # not below s, by rounding


def onward(process: Process, eps: Tensor, fresh: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """The noise of x_t = a·x_s + b·ξ: it is (a·σ_s·ε + b·ξ)/σ_t, with a = α_t/α_s and b = √(σ_t² − a²σ_s²).

    Where x_s = α_s·x + σ_s·ε that makes x_t = α_t·x + σ_t·(the result): noise ε goes on to t by fresh noise ξ.

    Args:
        process: the noise process.
        eps: ε, [B, …].
        fresh: ξ, [B, …].
        s: levels, [B].
        t: levels of at least s, [B].

    Source: TDM, arXiv 2503.06674, sec. 4.1; Phased DMD, arXiv 2510.27684.

    >>> from limbeck.diffusion import EDM
    >>> s, t = (torch.tensor([level], dtype=torch.float64) for level in (3.0, 5.0))
    >>> onward(EDM(), torch.ones(1, 1), torch.ones(1, 1), s, t)  # (3 + 4)/5
    tensor([[1.4000]])
    """
    kept, added = shares(process, s, t)
    return like(kept, eps) * eps + like(added, eps) * fresh


def shares(process: Process, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """(a·σ_s/σ_t, b/σ_t): how much of the noise at t is that at s, and how much is fresh; squares sum to 1, [B]."""
    kept = process.ratio(s) / process.ratio(t)
    return kept, (1 - kept**2).clamp_min(0).sqrt()


def importance(whole: Tensor, fresh: Tensor) -> Tensor:
    """(N(whole; 0, I)/N(fresh; 0, I))^(1/D): makes noise along a path count as if it were all new, [B].

    Args:
        whole: all the noise of the samples, [B, …].
        fresh: what was drawn, [B, …].

    Source: the released code of TDM, arXiv 2503.06674, where the D-th root keeps the weights from running apart.

    >>> importance(torch.zeros(1, 2), torch.full((1, 2), 2.0)).log()
    tensor([2.])
    """
    return ((fresh**2 - whole**2) / 2).flatten(1).mean(1).exp()


@dataclass(frozen=True, kw_only=True)
class Onward(Noise):
    """The state x_s where the student's step ended, taken on to x_t by fresh noise: the student's own marginals.

    x = x0 has the gradient; the noise is what the step implied, mixed with fresh noise by `onward`. That noise depends
    on x, so that a critic which learns x from x_t learns no score. Tweedie's formula for a kernel from x_s, not from x,
    says what to learn: E[x_t − σ_t²·ξ/b | x_t] = x_t + σ_t²·∇ln q_t, whose error has weight (b/σ_t)², for its variance
    grows as t comes close to s.

    Args:
        critic: what a critic learns here: the ``state``'s score as above, or the clean sample, weighted by `importance`
            or ``naive``, not at all.

    Raises:
        Incompatible: a student that is no `Trajectory`.

    Source: Phased DMD, arXiv 2510.27684, for the score; `importance` is TDM, arXiv 2503.06674.
    """

    critic: Literal["state", "importance", "naive"] = "state"

    def check(self, cast: Cast) -> None:
        cast.need("student", Trajectory, by=self)

    def see(self, tick: Tick, times: Times) -> Noised:
        def make(draw: Draw, key: Hashable) -> Noised:
            fresh = tick.noised(times)  # the levels, and the noise where s is clean
            assert draw.noise is not None
            eps = onward(fresh.process, draw.noise, fresh.eps, start_of(draw, fresh.t), fresh.t)
            return replace(fresh, x_t=fresh.process.add_noise(draw.x, eps, fresh.t), eps=eps, key=key)

        return tick.seen(("onward", times), make)

    def target(self, seen: Noised) -> tuple[Tensor, Tensor]:
        draw, x = seen.source, seen.x.detach()
        assert draw is not None and draw.noise is not None
        kept, added = shares(seen.process, start_of(draw, seen.t), seen.t)
        one = torch.ones_like(added)
        if self.critic == "naive":
            return x, one
        fresh = (seen.eps - like(kept, x) * draw.noise) / like(added.clamp_min(1e-6), x)
        if self.critic == "importance":
            return x, torch.where(added > 0, importance(seen.eps, fresh).to(one), one)
        excess = seen.eps - fresh / like(added.clamp_min(1e-6), x)  # x_t − σ_t·ξ·(σ_t/b) is α·x + σ_t·this
        return x + like(seen.process.ratio(seen.t), x) * excess, added**2


def start_of(draw: Draw, t: Tensor) -> Tensor:
    """The level s at which a draw's step ended, as [B]."""
    assert draw.segment is not None
    return torch.full_like(t, draw.segment[0])


@dataclass(frozen=True, kw_only=True)
class Huber(Shape):
    """g/√(g² + c²), each number by itself: the slope of the pseudo-Huber distance in the place of the square's.

    Args:
        c: what counts as small.

    Source: the student's loss of TDM, arXiv 2503.06674, in its released code.

    >>> Huber(c=4.0).bounded(torch.tensor([3.0, 0.0]))
    tensor([0.6000, 0.0000])
    """

    c: float = 1e-3

    def __post_init__(self) -> None:
        in_range("c", self.c, 1e-9)

    def bounded(self, g: Tensor) -> Tensor:
        """The bounded gradient, shape of g."""
        return g / (g**2 + self.c**2).sqrt()

    def __call__(self, gradient: Gradient, tick: Tick) -> Tensor:
        return self.bounded(gradient.g)


def _fake() -> Part:
    return Fake(critic=Critic(times=Segment(), noise=Onward()))


@dataclass(frozen=True, kw_only=True)
class TDM(ScoreDistillation):
    """Trajectory distribution matching: each step's end, noised on within its segment, is as the teacher there.

    g = huber(ψ − T)/(n·D) at x_τ = a·x_s + b·ξ with τ in the segment (s, t) of one step of a deterministic student;
    teacher and critic are compared where the student's path goes, so no step but the last has to give clean samples.
    The critic learns the score of the path's own marginals (the released code: x0, weighted by `importance` and
    min(SNR, 5), which is ``Critic(times=Segment(), noise=Onward(critic="importance"), snr=5.0)``). g goes through x0
    alone; x_s, of which x0 is α_s − σ_s·α_t/σ_t > 0 parts, would point the same way.

    Args: those of `ScoreDistillation`.

    Raises:
        Incompatible: a student that is no `Trajectory`.

    Source: Luo et al. 2025, arXiv 2503.06674, sec. 4.1 and 4.2; one number of steps at a time.

    >>> from limbeck import GaussianMixture, distill
    >>> teacher = GaussianMixture(means=torch.ones(1, 2), std=0.5)
    >>> student = Trajectory(teacher.clone(trainable=True), ratios=(3.0, 0.5), shape=(2,))
    >>> sorted(next(iter(distill(teacher, student, TDM(), steps=1, batch=8))).losses)
    ['critic', 'tdm']
    """

    fake: Part = field(default_factory=_fake)
    weight: Weight = field(default_factory=lambda: Weight(sigma=1.0, alpha=-1.0))
    times: Times = field(default_factory=Segment)
    noise: Noise = field(default_factory=Onward)
    shape: tuple[Shape, ...] = (Huber(), PerSample())


def _beyond() -> Part:
    return Fake(critic=Critic(times=Segment(beyond=80.0), noise=Onward()))


@dataclass(frozen=True, kw_only=True)
class PhasedDMD(ScoreDistillation):
    """DMD of where a step ends, not of clean samples: compared at all levels above s, down to s.

    g = (ψ − T)/(n·D) at x_t = a·x_s + b·ξ with t between s and (almost) pure noise. No one knows clean samples of the
    student's x_s, so the critic learns from x_s, see `Onward`. With ``Trajectory(only=(k,))`` and experts behind
    `Phased` a phase trains one expert, and its result is what the next one starts from.

    Args: those of `ScoreDistillation`.

    Raises:
        Incompatible: a student that is no `Trajectory`.

    Source: Fan et al. 2025, arXiv 2510.27684.

    >>> from limbeck import GaussianMixture, distill
    >>> teacher = GaussianMixture(means=torch.ones(1, 2), std=0.5)
    >>> student = Trajectory(teacher.clone(trainable=True), ratios=(3.0, 0.5), shape=(2,), only=(0,))
    >>> run = distill(teacher, student, PhasedDMD(critic_steps=1), steps=1, batch=8)
    >>> sorted(next(iter(run)).losses)
    ['critic', 'phaseddmd']
    """

    fake: Part = field(default_factory=_beyond)
    weight: Weight = field(default_factory=lambda: Weight(sigma=1.0, alpha=-1.0))
    times: Times = field(default_factory=lambda: Segment(beyond=80.0))
    noise: Noise = field(default_factory=Onward)
    shape: tuple[Shape, ...] = (PerSample(),)
    critic_steps: int = 5
