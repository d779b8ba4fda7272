"""EM distillation: one step is Diff-Instruct, the drift is what the scores made of the noise, and nothing else is.

h, h_z: the steps of noise and latents; Δ = ε_ψ − ε_T; r = σ/α.
"""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from limbeck import DMD, EDM, EMD, Corrected, Denoiser, FewStep, GaussianMixture, OneStep, Process, Rng, Teacher, like
from limbeck.engine.tick import Noised
from tests.oracles.exact import F64, AtRatio, assert_mean, close, descended, every_process, mixture, seeds

OTHER = Teacher(who="other")


class Straight(Denoiser):
    """D(x_t, t) = a + B·x_t/σ: a generator around it is G(z) = a + B·z."""

    def __init__(self, d: int, process: Process):
        super().__init__()
        self.process = process
        self.a = nn.Parameter(Rng("a").normal(d, dtype=F64))
        self.b = nn.Parameter(Rng("b").normal(d, d, dtype=F64))

    def denoise(self, x_t: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return self.a + x_t / like(self.process.sigma(t), x_t) @ self.b.mT


def generator(d: int, process: Process) -> OneStep:
    return OneStep(Straight(d, process), shape=(d,), ratio=3.0)


def teachers(d: int, process: Process) -> dict[str, GaussianMixture]:
    """Two that differ: T, and one in the place of ψ."""
    return {"teacher": mixture(0, d=d, process=process), "other": mixture(1, d=d, process=process)}


@every_process
@pytest.mark.parametrize("d", [1, 8])
@pytest.mark.parametrize("h", [0.1, 0.7])
def test_one_step_on_noise_is_diff_instruct(process: Process, d: int, h: float) -> None:
    times = AtRatio(0.8)
    once = EMD(steps=1, step=h, latent_step=0.0, fake=OTHER, times=times)
    plain = DMD(fake=OTHER, shape=(), critic_steps=1, times=times)
    ours, theirs = (descended(o, teachers(d, process), generator(d, process), batch=64) for o in (once, plain))
    assert all(theirs[name].abs().max() > 1e-3 for name in theirs)
    for name in theirs:
        close(ours[name], h * theirs[name], 1e-12)


def corrected(
    objective: EMD, who: dict[str, GaussianMixture], student: FewStep, n: int = 32, seed: int = 0
) -> tuple[Noised, Corrected]:
    """The E-step from n samples at r = 0.8, with its own random numbers."""
    process, d = student.process, student.shape[0]
    draw = student.draw(n, None, Rng((seed, "draw")))
    t = process.at_ratio(torch.full((n,), 0.8, dtype=F64))
    eps, x = Rng((seed, "eps")).normal(n, d, dtype=F64), draw.x.detach()
    seen = Noised(x, process.add_noise(x, eps, t), t, eps, None, process, "samples", draw)
    tick = SimpleNamespace(
        rng=lambda name: Rng((seed, "kicks")),
        seeded=lambda name: nullcontext(),
        denoise=lambda name, at, guidance: who[name].denoise(at.x_t, at.t),
    )
    return seen, objective.corrected(tick, seen, student)  # type: ignore[arg-type]


@every_process
@pytest.mark.parametrize("steps", [1, 5])
def test_the_drift_is_the_noise_without_what_no_score_made(process: Process, steps: int) -> None:
    """The E-step of ε is linear in ε₀, its kicks and the Δ: where Δ = 0, the same numbers leave all but the drift."""
    who, student = teachers(2, process), generator(2, process)
    emd = EMD(steps=steps, fake=OTHER)
    moved, still = (corrected(emd, w, student)[1] for w in (who, who | {"other": who["teacher"]}))
    assert moved.drift.abs().max() > 0.01 and not still.drift.any()
    close(moved.drift, moved.eps - still.eps)


@every_process
def test_latents_follow_the_ratio_through_the_generator(process: Process) -> None:
    """z¹ less its own part is h_z·∇_z ln(p_t/q_t)(α·G(z) + σ·ε), here by autodiff of the densities."""
    who, student = teachers(2, process), generator(2, process)
    emd = EMD(steps=1, latent_step=0.3, fake=OTHER)
    (seen, moved), (_, still) = (corrected(emd, w, student) for w in (who, who | {"other": who["teacher"]}))
    assert seen.source is not None and seen.source.noise is not None
    z = seen.source.noise.clone().requires_grad_()
    x_t = process.add_noise(student.first(z), seen.eps, seen.t)
    log_ratio = who["teacher"].log_prob(x_t, seen.t) - who["other"].log_prob(x_t, seen.t)
    (slope,) = torch.autograd.grad(log_ratio.sum(), z)
    close(moved.z - still.z, 0.3 * slope, 1e-11)


@seeds
def test_without_scores_noise_and_latents_stay_normal(seed: int) -> None:
    """v ← (1 − h)²·v + 2h from v = 1, K times."""
    process, steps, h = EDM(), 3, 0.2
    emd = EMD(steps=steps, step=h, latent_step=h / 2, fake=Teacher())
    _, end = corrected(emd, teachers(1, process), generator(1, process), n=40_000, seed=seed)
    for value, rate in ((end.eps, h), (end.z, h / 2)):
        variance = 1.0
        for _ in range(steps):
            variance = (1 - rate) ** 2 * variance + 2 * rate
        assert_mean(value**2, torch.tensor([variance], dtype=F64))


def test_cancellation_leaves_nothing_where_nothing_is_wrong() -> None:
    """With ψ = T the gradient is zero to the bit; without cancellation it is not, and it is noise."""
    process = EDM()
    kept, cancelled = (
        descended(
            EMD(fake=Teacher(), times=AtRatio(0.8), cancel=cancel),
            teachers(2, process),
            generator(2, process),
            batch=64,
        )
        for cancel in (False, True)
    )
    assert not any(g.any() for g in cancelled.values())
    assert all(g.abs().max() > 1e-3 for g in kept.values())
