"""Consistency: every point of one trajectory maps to the same clean sample."""

from dataclasses import dataclass, field
from math import sqrt

import torch
from torch import Tensor

from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.guidance import Guidance
from limbeck.diffusion.samplers import heun_step
from limbeck.diffusion.times import Karras, Times
from limbeck.engine.objective import Loss, Objective, Term
from limbeck.engine.optim import EMA
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Tick
from limbeck.errors import in_range
from limbeck.students.generator import FewStep


def pseudo_huber(a: Tensor, b: Tensor, *, c: float = 0.00054) -> Tensor:
    """√(‖a − b‖² + (c√D)²) − c√D over each example of D numbers, [B].

    Source: improved consistency training, arXiv 2310.14189, sec. 3.3, with c = 0.00054.

    >>> pseudo_huber(torch.ones(1, 4), torch.zeros(1, 4), c=0.0)
    tensor([2.])
    """
    square = ((a - b) ** 2).flatten(1).sum(1)
    c = c * sqrt(a[0].numel())
    return (square + c**2).clamp_min(1e-30).sqrt() - c  # a gradient of 0, not NaN, where a = b and c = 0


@dataclass(frozen=True, kw_only=True)
class Consistency(Objective):
    """d(f(x_t, t), sg f̄(x_r, r)) for neighbours t > r of one trajectory, with the student's denoiser as f.

    The boundary f(x, 0) = x holds by the denoiser's preconditioning (c_skip → 1, c_out → 0), as in ECT, 2406.14548.
    With a teacher x_r is one Heun step of its ODE from x_t (distillation); without, x_r has x_t's noise (training).

    Args:
        times: noise levels; u ↦ t is its quantile function.
        interval: r is the level at quantile u − interval.
        target: moving average that gives f̄; decay 0 is f itself without gradient.
        guidance: on the teacher.
        teacher: follow the teacher's ODE.
        c: of the pseudo-Huber distance.

    Raises:
        Incompatible: no data, a student that is no generator, or no `Denoiser` to follow.

    Source: Song et al. 2023, arXiv 2303.01469, algorithms 2 and 3.

    >>> from limbeck import GaussianMixture, OneStep, distill
    >>> teacher = GaussianMixture(means=torch.ones(2, 2))
    >>> student = OneStep(teacher.clone(trainable=True), shape=(2,))
    >>> sorted(next(iter(distill(teacher, student, Consistency(), torch.randn(9, 2), steps=1, batch=8))).losses)
    ['consistency']
    """

    times: Times = field(default_factory=Karras)
    interval: float = 1 / 17
    target: EMA = field(default_factory=lambda: EMA(decay=0.0))
    guidance: Guidance | None = None
    teacher: bool = True
    c: float = 0.00054

    def __post_init__(self) -> None:
        in_range("interval", self.interval, 1e-6, 1)

    def check(self, cast: Cast) -> None:
        cast.need_fields("x", by=self)
        cast.need("student", FewStep, by=self)
        if self.teacher:
            cast.need("teacher", Denoiser, by=self)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        student, target = cast.need("student", FewStep, by=self), cast.target("student", self.target)
        assert isinstance(target, FewStep)
        teacher = cast.need("teacher", Denoiser, by=self) if self.teacher else None

        def loss(tick: Tick) -> Loss:
            x, cond, rng, process = tick.batch["x"], tick.batch.get("cond"), tick.rng("consistency"), student.process
            u = rng.uniform(len(x))
            t = self.times.at(u, process, tick.progress)
            r = self.times.at((u - self.interval).clamp_min(0), process, tick.progress)
            eps = rng.normal(len(x), *x.shape[1:], dtype=x.dtype)
            x_t, x_r = process.add_noise(x, eps, t), process.add_noise(x, eps, r)
            with torch.no_grad():
                if teacher is not None:
                    guided = tick.guided(self.guidance, teacher)
                    x_r = heun_step(guided, x_t, t, r, cond)
                with tick.seeded("dropout"):
                    goal = target.denoiser.denoise(x_r, r, cond)
            with tick.seeded("dropout"):
                here = student.denoiser.denoise(x_t, t, cond)
            return Loss(pseudo_huber(here, goal, c=self.c))

        return (Term("consistency", "student", loss, of=self),)
