"""EM distillation: Langevin steps on noise and latents correct the student's samples, and it regresses onto those."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from limbeck.diffusion.guidance import Guidance
from limbeck.diffusion.process import like
from limbeck.diffusion.times import Karras, Times
from limbeck.engine.objective import Loss, Objective, Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Noised, Tick
from limbeck.errors import Incompatible, in_range
from limbeck.objectives.score.distillation import along
from limbeck.objectives.score.parts import Fake, Part, Teacher, Weight
from limbeck.students.generator import FewStep
from limbeck.students.trajectory import Trajectory


@dataclass(frozen=True)
class Corrected:
    """Where K Langevin steps led.

    Args:
        z: the latents, [B, …].
        eps: the noise, [B, …].
        drift: the part of ``eps`` that the scores made, without that of ε₀ and of the steps' own noise, [B, …].
    """

    z: Tensor
    eps: Tensor
    drift: Tensor


@dataclass(frozen=True, kw_only=True)
class EMD(Objective):
    """EM distillation: the student's likelihood of the teacher's x_t, with latents that are inferred by short runs.

    E-step, K times from ε, z ~ N(0, I), at x_t = α·G(z) + σ·ε with Δ = ε_ψ(x_t) − ε_T(x_t) = σ·∇ln(p_t/q_t)::

        z ← z + h_z·((α/σ)·(∂G/∂z)ᵀΔ − z) + √(2h_z)·ξ,    ε ← ε + h·(Δ − ε) + √(2h)·ξ'

    M-step: G(z) regresses onto x_t/α, whose residual is σ/α·ε. Noise cancellation leaves of that ε only what the Δ made
    of it, so that the gradient by G(z) is −w(t)·drift. With one step and h_z = 0 it is h × that of `DMD` without a
    shape, Diff-Instruct's.

    Args:
        steps: K.
        step: h.
        latent_step: h_z; 0 leaves the latents alone.
        cancel: noise cancellation; without it the gradient is −w(t)·ε, whose noise is far larger.
        real: ε_T.
        fake: ε_ψ.
        weight: w; that of the likelihood is σ^−1, the default that of `DMD`, which steps equally far from every level.
        times: noise levels.
        guidance: on the teacher.
        critic_steps: steps of the critic to one of the student.

    Raises:
        Incompatible: a student that is no one-step generator.

    Source: Xie et al. 2024, arXiv 2405.16852, sec. 3.

    >>> from limbeck import GaussianMixture, OneStep, distill
    >>> teacher = GaussianMixture(means=torch.ones(1, 2), std=0.5)
    >>> student = OneStep(teacher.clone(trainable=True), shape=(2,))
    >>> sorted(next(iter(distill(teacher, student, EMD(), steps=1, batch=8))).losses)
    ['critic', 'emd']
    """

    steps: int = 4
    step: float = 0.1
    latent_step: float = 0.01
    cancel: bool = True
    real: Part = field(default_factory=Teacher)
    fake: Part = field(default_factory=Fake)
    weight: Weight = field(default_factory=lambda: Weight(sigma=1.0, alpha=-1.0))
    times: Times = field(default_factory=lambda: Karras(lo=0.02, hi=0.98))
    guidance: Guidance | None = None
    critic_steps: int = 1

    def __post_init__(self) -> None:
        in_range("steps", self.steps, 1)
        in_range("step", self.step, 0, 1)
        in_range("latent_step", self.latent_step, 0, 1)
        in_range("critic_steps", self.critic_steps, 1)

    def check(self, cast: Cast) -> None:
        student = cast.need("student", FewStep, by=self)
        if isinstance(student, Trajectory):
            raise Incompatible("EMD", need="a student that begins with its noise", got="a Trajectory", fit="OneStep")
        if len(student.ratios) != 1:
            raise Incompatible("EMD", need="a student of one step", got=f"{len(student.ratios)} steps", fit="OneStep")

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        joined = (*self.real.terms(cast), *self.fake.terms(cast))
        return *joined, Term("emd", "student", self.loss, every=self.critic_steps, of=self)

    def loss(self, tick: Tick) -> Loss:
        """The student's loss, `along` the gradient of the M-step."""
        seen, student = tick.noised(self.times), tick.cast.need("student", FewStep, by=self)
        end = self.corrected(tick, seen, student)
        with tick.seeded((self, "maximise")):
            x = student.first(end.z, seen.cond)
        residual = end.drift if self.cancel else end.eps
        return Loss(along(x, -like(self.weight.at(seen.t, seen.process), x) * residual))

    def corrected(self, tick: Tick, seen: Noised, student: FewStep) -> Corrected:
        """The E-step, from the samples' own latents and noise."""
        assert seen.source is not None and seen.source.noise is not None
        eps = seen.eps
        z, drift, rng = seen.source.noise, torch.zeros_like(eps), tick.rng((self, "langevin"))
        pull = like(1 / seen.process.ratio(seen.t), eps)
        for k in range(self.steps):
            z = z.detach().requires_grad_()
            with tick.seeded((self, k)), torch.enable_grad():
                x = student.first(z, seen.cond)
            x_t = seen.process.add_noise(x.detach(), eps, seen.t)
            here = replace(seen, x=x.detach(), x_t=x_t, eps=eps, key=(seen.key, self, k), via=None)
            gap = self.fake.eps(tick, here, None) - self.real.eps(tick, here, self.guidance)
            (slope,) = torch.autograd.grad(x, z, pull * gap)
            kicks = [rng.normal(len(eps), *eps.shape[1:], dtype=eps.dtype) for _ in range(2)]
            z = z.detach() + self.latent_step * (slope - z.detach()) + (2 * self.latent_step) ** 0.5 * kicks[0]
            eps = eps + self.step * (gap - eps) + (2 * self.step) ** 0.5 * kicks[1]
            drift = (1 - self.step) * drift + self.step * gap
        return Corrected(z, eps, drift)
