"""Plain regression: onto the ends of the teacher's trajectories, or onto clean data to train a teacher."""

from dataclasses import dataclass, field

import torch

from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.times import LogNormal, Times
from limbeck.engine.objective import Loss, Objective, Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Tick
from limbeck.errors import in_range
from limbeck.objectives.score.critic import denoising
from limbeck.objectives.trajectory.consistency import pseudo_huber
from limbeck.students.generator import FewStep
from limbeck.tree import rows


@dataclass(frozen=True, kw_only=True)
class Regression(Objective):
    """d(G(z), x) over pairs of noise z and the sample x that the teacher's ODE makes of it; d is pseudo-Huber.

    Args:
        c: of the pseudo-Huber distance.

    Raises:
        Incompatible: data without fields noise and x, or a student that is no generator.

    Source: Luhman & Luhman 2021, arXiv 2101.02388, eq. 6, with a robust distance.

    >>> from limbeck import Dataset, GaussianMixture, OneStep, distill
    >>> student = OneStep(GaussianMixture(means=torch.ones(1, 2)).clone(trainable=True), shape=(2,))
    >>> pairs = Dataset(noise=torch.randn(9, 2), x=torch.randn(9, 2))
    >>> sorted(next(iter(distill(None, student, Regression(), pairs, steps=1, batch=8))).losses)
    ['regression']
    """

    c: float = 0.03

    def check(self, cast: Cast) -> None:
        cast.need("student", FewStep, by=self)
        cast.need_fields("noise", "x", by=self)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        student = cast.need("student", FewStep, by=self)

        def loss(tick: Tick) -> Loss:
            x0 = student.first(tick.batch["noise"], tick.batch.get("cond"))
            return Loss(pseudo_huber(x0, tick.batch["x"], c=self.c))

        return (Term("regression", "student", loss, of=self),)


@dataclass(frozen=True, kw_only=True)
class Denoising(Objective):
    """w(t)·‖D(x_t, t, c) − x‖²: how a diffusion teacher is trained from data.

    Args:
        times: noise levels.
        drop: share of the examples that lose their condition, so that the network learns the unconditional score too.

    Raises:
        Incompatible: no data, or a student that is no `Denoiser`.

    Source: EDM, arXiv 2206.00364, eq. 2 and table 1; the dropped condition, arXiv 2207.12598, algorithm 1.

    >>> from limbeck import Trained, distill
    >>> from limbeck.problems.networks import ResidualMLP
    >>> net = Trained(ResidualMLP(shape=(2,), width=16, blocks=1))
    >>> sorted(next(iter(distill(None, net, Denoising(), torch.randn(9, 2), steps=1, batch=8))).losses)
    ['denoising']
    """

    times: Times = field(default_factory=LogNormal)
    drop: float = 0.1

    def __post_init__(self) -> None:
        in_range("drop", self.drop, 0, 1)

    def check(self, cast: Cast) -> None:
        cast.need("student", Denoiser, by=self)
        cast.need_fields("x", by=self)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        student = cast.need("student", Denoiser, by=self)

        def loss(tick: Tick) -> Loss:
            seen = tick.noised(self.times, of="data")
            dropped = tick.rng((self, "drop")).uniform(len(seen.x)) < (0 if seen.cond is None else self.drop)
            order = dropped.long().argsort(stable=True)  # rows with their condition first
            kept, bare = order.split([len(order) - int(dropped.sum()), int(dropped.sum())])
            parts = [student.denoise(seen.x_t[kept], seen.t[kept], rows(seen.cond, kept))] if len(kept) else []
            parts += [student.denoise(seen.x_t[bare], seen.t[bare])] if len(bare) else []
            x0 = torch.cat(parts)[order.argsort()]
            return Loss(denoising(x0, seen.x, seen.t, seen.process, student.sigma_data))

        return (Term("denoising", "student", loss, of=self),)
