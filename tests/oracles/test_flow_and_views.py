"""CFD as DDIM, noise that sticks, several views of one object, ESD's mixture of critics, ASD's shift, CSM's path.

Notation: r = σ/α, ẽ the noise on the student, M_v cameras, λ the share of the critic that does not know the view.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from limbeck import (
    ASD,
    CFD,
    CFG,
    CSD,
    EDM,
    ESD,
    SGD,
    VSD,
    Annealed,
    Attached,
    BadSetting,
    Cast,
    Critic,
    EulerRate,
    Fake,
    Fresh,
    Inverted,
    Noised,
    Particles,
    Process,
    Redenoised,
    Rng,
    Shifted,
    Student,
    Tick,
    Uniform,
    Views,
    Weight,
    distill,
    euler,
    sample,
)
from limbeck.problems.views2d import Views2D
from tests.oracles.exact import (
    F64,
    AtRatio,
    assert_mean,
    close,
    covariance,
    descended,
    every_process,
    mixture,
)


def kept_noise(cast: Cast) -> Tensor:
    """The noise that a run keeps, of whatever shape its student has."""
    (noise,) = (v for v in cast.kept.values() if isinstance(v, Tensor) and v.is_floating_point())
    return noise


# The flow


def flowed(
    objective: CFD, process: Process, student: Student, *, n: int, steps: int, classes: int
) -> tuple[Tensor, ...]:
    """(the student's parameter after a run that starts at 0, DDIM's samples from the same noise)."""
    (x,) = student.parameters()
    teacher = mixture(1, k=4, d=x.shape[-1], process=process, classes=classes)
    rate = EulerRate(times=objective.times, process=process, steps=steps)
    run = distill(teacher, student, objective, steps=steps, batch=n, optim=SGD(lr=n, schedule=rate))
    noise = kept_noise(run.cast).clone()
    run.finish()
    clock = 0.98 - 0.96 * torch.arange(steps, dtype=F64) / steps
    levels = torch.cat([process.at_fraction(clock), torch.zeros(1, dtype=F64)])
    denoiser = (objective.guidance or CFG(scale=1.0))(teacher)
    cond = student.draw(n, None, Rng(0)).cond
    return x.detach(), sample(euler(denoiser, noise.expand(n, -1), levels, cond))


@every_process
@pytest.mark.parametrize("d", [1, 8])
@pytest.mark.parametrize("guidance", [None, CFG(scale=3.0)], ids=str)
def test_consistent_flow_is_ddim(process: Process, d: int, guidance: CFG | None) -> None:
    student = Particles(torch.zeros(6, d, dtype=F64), torch.arange(6) % 2)
    x, wanted = flowed(CFD(guidance=guidance), process, student, n=6, steps=12, classes=2)
    close(x, wanted, 1e-10)
    assert wanted.std(0).min() > 0.05


@every_process
def test_one_plain_view_flows_like_a_sample(process: Process) -> None:
    student = Views(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64)[None])
    theta, wanted = flowed(CFD(), process, student, n=1, steps=12, classes=1)
    close(theta, wanted[0], 1e-10)


def test_a_rate_needs_a_run() -> None:
    with pytest.raises(BadSetting, match="steps must be at least 1, got 0"):
        EulerRate(times=CFD().times, process=EDM(), steps=0)


# Noise that sticks


@dataclass(frozen=True, kw_only=True)
class Watched(CFD):
    """CFD that shows what it sees."""

    show: Callable[[Noised], None] = lambda seen: None

    def gradient(self, tick: Tick, seen: Noised) -> Tensor:
        self.show(seen)
        return super().gradient(tick, seen)


@pytest.mark.parametrize("refresh", [0.0, 0.19, 1.0])
def test_noise_is_refreshed_once_a_tick(refresh: float) -> None:
    """ẽ stays N(0, 1) and has a correlation of √(1 − γ)ᵏ with what it was k ticks before, however a tick is cut."""
    n, seen = 40_000, list[Tensor]()
    student = Particles(torch.zeros(n, 1, dtype=F64))
    objective = Watched(noise=Attached(refresh=refresh), show=lambda noised: seen.append(noised.eps.clone()))
    run = distill(mixture(0, k=1, d=1), student, objective, steps=3, batch=n, accumulate=2, optim=SGD(lr=0.0))
    run.finish()
    ticks = [torch.cat(seen[i : i + 2])[:, 0] for i in (0, 2, 4)]
    for k, eps in enumerate(ticks):
        assert abs(eps.square().mean() - 1) < 6 * (2 / n) ** 0.5
        wanted = (1 - refresh) ** (k / 2)
        assert abs((eps * ticks[0]).mean() - wanted) < 6 * ((1 + wanted**2) / n) ** 0.5
    assert (refresh == 0) == torch.equal(ticks[0], ticks[1])


def cameras(views: int = 3, d: int = 2, points: int = 5) -> Tensor:
    """Random cameras, the last of which is the first again."""
    made = Rng("cameras").normal(views, d, points, dtype=F64)
    return torch.cat([made, made[:1]])


def test_views_are_linear_and_share_noise() -> None:
    """x_v = M_v·θ; noise that is N(0, I) on the object is N(0, 1) in each pixel, and the same where views are."""
    theta, m = Rng("theta").normal(5, dtype=F64), cameras()
    draw = Views(theta, m).draw(8, None, Rng(0))
    assert isinstance(draw.cond, Tensor) and draw.cond.tolist() == [0, 1, 2, 3] * 2 and draw.carry is not None
    close(draw.x[:4], torch.einsum("vdp,p->vd", m, theta))
    carry = torch.stack([draw.carry(point) for point in torch.eye(5, dtype=F64)], -1)[:4]  # [views, d, points]
    close((carry**2).sum(-1), torch.ones(4, 2, dtype=F64))
    close(carry * m.norm(dim=2, keepdim=True), m)
    eps = draw.carry(Rng("noise").normal(5, dtype=F64))
    assert torch.equal(eps[0], eps[3]) and not torch.equal(eps[0], eps[1])


def test_neighbours_of_the_problem_share_a_point() -> None:
    """A pixel is a mean of two points: half the noise of a pixel is its neighbour's where they share one of them."""
    problem = Views2D()
    rows = Views(torch.zeros(24), problem.cameras).rows.double()
    overlap = torch.einsum("vdp,wep->vdwe", rows, rows)
    for v in range(8):
        close(overlap[v, 1, (v + 1) % 8, 0], torch.tensor(0.5, dtype=F64), 1e-6)
        close(overlap[v, 0, v, 0], torch.tensor(1.0, dtype=F64), 1e-6)
        assert not overlap[v, :, (v + 3) % 8].any()


def test_a_view_moves_what_it_sees() -> None:
    """The object descends Σ_v M_vᵀ·g_v/V with g_v what particles at the views' places descend."""
    theta, m = Rng("theta").normal(5, dtype=F64), cameras()
    objective = CSD(times=AtRatio(0.7), noise=Inverted(), weight=Weight(sigma=1.0))
    teacher = mixture(0, k=4, classes=2)
    student = Views(theta, m[:2])
    views = student.draw(2, None, Rng(0))
    moved = descended(objective, teacher, student, batch=2)["theta"]
    each = descended(objective, teacher, Particles(views.x.detach(), views.cond), batch=2)["x"]
    close(moved, torch.einsum("vdp,vd->p", m[:2], each))
    assert moved.abs().max() > 1e-5


def test_views_are_cut_like_any_rows() -> None:
    student = Views(torch.ones(5, dtype=F64), cameras())
    for total in (8, 6):  # all views alike, and at random
        parts = [student.draw(2, None, Rng(0, part=slice(i, i + 2), total=total)) for i in range(0, total, 2)]
        every = student.draw(total, None, Rng(0))
        assert torch.equal(torch.cat([part.x for part in parts]), every.x)


@pytest.mark.parametrize(
    ("theta", "cameras", "text"),
    [
        (torch.ones(4), torch.ones(3, 2, 5), r"must be \[p\] and \[views, d, p\], got \[4\] and \[3, 2, 5\]"),
        (torch.ones(5), torch.ones(2, 5), "must be"),
        (torch.ones(2), torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]), "no row of zeros"),
    ],
)
def test_cameras_that_do_not_fit(theta: Tensor, cameras: Tensor, text: str) -> None:
    with pytest.raises(BadSetting, match=text):
        Views(theta, cameras)


# The entropy of views


def entropic(scale: float | None, *, steps: int = 4, lr: float = 0.3, kind: type[VSD | ESD] = ESD) -> Tensor:
    """Particles of two classes after a few ticks beside a critic that learns both with and without them."""
    critic = Critic(times=AtRatio(0.7), dropout=0.5)
    fake = Fake(critic=critic, guidance=None if scale is None else CFG(scale=scale))
    student = Particles(Rng("particles").normal(32, 2, dtype=F64), torch.arange(32) % 2)
    teacher, objective = mixture(0, k=4, classes=2), kind(times=AtRatio(0.7), fake=fake)
    distill(teacher, student, objective, steps=steps, batch=32, optim=SGD(lr=lr)).finish()
    return student.x.detach()


def test_esd_without_entropy_is_vsd() -> None:
    """To the bit; at a rate of 2²⁰ the last bits of a gradient are seen."""
    for steps, lr in ((4, 0.3), (1, 2.0**20)):
        assert torch.equal(entropic(1.0, steps=steps, lr=lr), entropic(None, steps=steps, lr=lr, kind=VSD))
    assert not torch.equal(entropic(0.5), entropic(None, kind=VSD))


def test_esd_is_a_mixture_of_two_critics() -> None:
    """One tick of λ is (1 − λ) of VSD's and λ of that under the critic that does not know the view, the old being x."""
    by_view, by_all = entropic(1.0, steps=1), entropic(0.0, steps=1)
    for lam in (0.25, 0.5):
        close(entropic(1 - lam, steps=1), (1 - lam) * by_view + lam * by_all)
    assert (by_view - by_all).abs().max() > 1e-3


def test_esd_forgets_in_half() -> None:
    assert ESD().fake == Fake(critic=Critic(dropout=0.5), guidance=CFG(scale=0.5))


# The shift


@every_process
@pytest.mark.parametrize("ratio", [0.6, 4.0])
@pytest.mark.parametrize("d", [1, 8])
def test_expected_gradient_of_asd(process: Process, ratio: float, d: int) -> None:
    """E[g] = w(t)·E_u[ε̄(t) − ε̄(t + u·η·(t − t_min))], ε̄(t) = (I − Σ(Σ + r²I)⁻¹)·(x − μ)/r being E_ε[ε_T(x_t, t)]."""
    n, teacher, x = 20_000, mixture(2, k=1, d=d, process=process), Rng(0).normal(d, dtype=F64)
    sigma, eye = covariance(teacher), torch.eye(d, dtype=F64)

    def mean_eps(t: Tensor) -> Tensor:
        r = process.ratio(t)[:, None, None]
        pull = (eye - sigma @ torch.linalg.inv(sigma + r**2 * eye)) / r
        return (pull @ (x - teacher.means[0])[:, None])[..., 0].mean(0)

    t = process.at_ratio(torch.tensor([ratio], dtype=F64))
    clock, u = process.fraction(t), (torch.arange(4000, dtype=F64) + 0.5) / 4000
    ahead = process.at_fraction((clock + 0.2 * u * (clock - 0.1)).clamp_max(1))
    expected = ratio**2 / (1 + ratio**2) * (mean_eps(t) - mean_eps(ahead))
    objective = ASD(times=AtRatio(ratio), fake=Shifted(share=0.2, start=0.1))
    moved = descended(objective, teacher, Particles(x.expand(n, d)), batch=n)
    assert_mean(n * moved["x"], expected, share=0.2)


def test_both_predictions_of_asd_see_one_noise() -> None:
    """With a single Gaussian of no width every prediction of ε is the noise itself, at any time: nothing pulls."""
    teacher, x = mixture(0, k=1), Rng(0).normal(64, 2, dtype=F64)
    teacher.factor.data *= 1e-9
    at_mean = teacher.means + 0 * x
    assert descended(ASD(), teacher, Particles(at_mean), batch=64)["x"].abs().max() < 1e-7
    assert descended(ASD(), teacher, Particles(x), batch=64)["x"].abs().max() > 1e-4


def test_no_shift_below_its_start() -> None:
    """At times before t_min both predictions are one, to the bit."""
    objective = ASD(times=Uniform(lo=0.05, hi=0.1), fake=Shifted(share=1.0, start=0.2))
    moved = descended(objective, mixture(0), Particles(Rng(0).normal(16, 2, dtype=F64)), batch=16)["x"]
    assert not moved.any()


# Classifier score matching


def test_csm_is_csd_without_chance() -> None:
    """At one level inversion leaves nothing to chance, and the gradient is w·(ε_T(x_t; c) − ε_T(x_t; ∅))."""
    teacher, x = mixture(0, k=4, classes=2), Rng(0).normal(16, 2, dtype=F64)
    cond, process, ratio = torch.arange(16) % 2, teacher.process, 0.7
    csm = CSD(noise=Inverted(stride=1.0, gap=0.0), times=AtRatio(ratio))
    moved = [descended(csm, teacher, Particles(x, cond), batch=16, seed=seed)["x"] for seed in (0, 1)]
    assert torch.equal(*moved)
    fresh = [
        descended(replace(csm, noise=Fresh()), teacher, Particles(x, cond), batch=16, seed=seed)["x"] for seed in (0, 1)
    ]
    assert not torch.equal(*fresh)
    t = torch.full((16,), ratio, dtype=F64)
    x_t = inverted(lambda x_t, level: teacher.denoise(x_t, level, None), x, t, process)
    eps = [process.convert(teacher.denoise(x_t, t, c), x_t, t, "x0", "eps") for c in (cond, None)]
    close(16 * moved[0], ratio**2 / (1 + ratio**2) * (eps[0] - eps[1]), 1e-9)


def inverted(x0: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor, process: Process) -> Tensor:
    """Two steps of DDIM inversion: all the way to t, and one from t to t that stays."""
    clean = process.at_fraction(torch.zeros_like(t))
    eps = process.convert(x0(x, clean), x, clean, "x0", "eps")
    x_t = process.add_noise(x0(x, clean), eps, t)
    eps = process.convert(x0(x_t, t), x_t, t, "x0", "eps")
    return process.add_noise(x0(x_t, t), eps, t)


# StableDreamer


@every_process
def test_sds_is_a_pull_to_what_the_teacher_makes(process: Process) -> None:
    """∂/∂x of c·½‖x − sg x̂₀‖² with c = w·α/σ is the gradient of SDS, by autodiff."""
    teacher, x = mixture(0, k=3, process=process), Rng(0).normal(16, 2, dtype=F64)
    seen = list[Noised]()

    @dataclass(frozen=True, kw_only=True)
    class Shown(Redenoised):
        def gradient(self, tick: Tick, noised: Noised) -> Tensor:
            seen.append(noised)
            return super().gradient(tick, noised)

    objective = Shown(weight=Weight(), times=Annealed(first=Uniform(hi=0.6), last=Uniform(hi=0.2)))
    moved = descended(objective, teacher, Particles(x), batch=16)["x"]
    (noised,) = seen
    leaf = x.clone().requires_grad_()
    target = teacher.denoise(noised.x_t.detach(), noised.t)
    alpha, sigma = process.alpha(noised.t), process.sigma(noised.t)
    c = sigma**2 / (alpha**2 + sigma**2) * alpha / sigma
    (c * ((leaf - target) ** 2).sum(1) / 2).mean().backward()
    close(moved, leaf.grad, 1e-11)
