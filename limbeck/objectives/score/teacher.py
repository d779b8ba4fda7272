"""A smaller denoiser learns the teacher's predictions, before it becomes a generator."""

from dataclasses import dataclass, field

from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.guidance import Guidance
from limbeck.diffusion.times import LogNormal, Times
from limbeck.engine.objective import Loss, Objective, Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Tick
from limbeck.objectives.score.critic import denoising


@dataclass(frozen=True, kw_only=True)
class TeacherDenoising(Objective):
    """w(t)·‖D(x_t, t, c) − T(x_t, t, c)‖²/D: denoising without its noise, for T = E[x | x_t] has the same minimiser.

    Args:
        times: noise levels.
        guidance: on the teacher.

    Raises:
        Incompatible: no data, a teacher or a student that is no `Denoiser`.

    Source: the teacher score matching of MSD, Song et al. 2024, arXiv 2410.23274; w is that of `denoising`.

    >>> import torch
    >>> from limbeck import GaussianMixture, Trained, distill
    >>> from limbeck.problems.networks import ResidualMLP
    >>> net = Trained(ResidualMLP(shape=(2,), width=16, blocks=1))
    >>> teacher = GaussianMixture(means=torch.ones(1, 2), std=0.5)
    >>> sorted(next(iter(distill(teacher, net, TeacherDenoising(), torch.randn(9, 2), steps=1, batch=8))).losses)
    ['teacherdenoising']
    """

    times: Times = field(default_factory=LogNormal)
    guidance: Guidance | None = None

    def check(self, cast: Cast) -> None:
        cast.need("teacher", Denoiser, by=self)
        cast.need("student", Denoiser, by=self)
        cast.need_fields("x", by=self)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        def loss(tick: Tick) -> Loss:
            seen = tick.noised(self.times, of="data")
            target = tick.denoise("teacher", seen, self.guidance)
            x0 = tick.denoise("student", seen, grad=True)
            return Loss(denoising(x0, target, seen.t, seen.process, cast.need("teacher", Denoiser, by=self).sigma_data))

        return (Term("teacherdenoising", "student", loss, of=self),)
