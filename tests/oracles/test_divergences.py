"""f-divergences, f-distill and DiffRatio: gradients against densities, identities with DMD, and running means.

Notation: p_t the teacher's diffused density, q_t the student's, r = p_t/q_t, ρ = σ/α.
"""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from limbeck import (
    DMD,
    EDM,
    GAN,
    SGD,
    VP,
    ByRatio,
    DiffRatio,
    Divergence,
    Fake,
    FDistill,
    ForwardKL,
    Jeffreys,
    JensenShannon,
    LogNormal,
    LogRatio,
    Noised,
    Process,
    ReverseKL,
    Rng,
    ScoreDistillation,
    Softened,
    SquaredHellinger,
    Teacher,
    Uniform,
    Weight,
    along,
    distill,
)
from limbeck.engine.loop import Run
from tests.oracles.densities import InSpace, Known, OnLine
from tests.oracles.exact import (
    F64,
    Affine,
    AtRatio,
    assert_mean,
    close,
    descended,
    every_process,
    gradient,
    seeds,
    tensor,
)
from tests.oracles.test_score_distillation import with_exact_critic
from tests.suite.cases import EXACT, Case, unequal

DIVERGENCES = (ReverseKL(), ForwardKL(), JensenShannon(), SquaredHellinger(), Softened(), Jeffreys())
each = pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda d: type(d).__name__)
R = torch.logspace(-2, 2, 41, dtype=F64)
ALL = (0.0, math.inf)


def by(value: Any, x: Tensor) -> Tensor:
    """The derivative of an elementwise function."""
    return gradient(lambda x: (value(x) + 0 * x).sum(), x)[0]


def twice(value: Any, x: Tensor) -> Tensor:
    """Its second derivative."""
    x = x.clone().requires_grad_()
    (once,) = torch.autograd.grad((value(x) + 0 * x).sum(), x, create_graph=True)
    return torch.autograd.grad((once + 0 * x).sum(), x)[0]


# What each divergence is


@each
def test_f_and_h_belong_together(divergence: Divergence) -> None:
    """f(1) = 0, f is convex, h = r²·f''."""
    assert divergence.f(tensor(1.0)).abs().item() < 1e-15
    bend = twice(divergence.f, R)
    assert (bend > 0).all()
    torch.testing.assert_close(divergence.curvature(R), bend, rtol=1e-10, atol=0)
    torch.testing.assert_close(divergence.h(R), R**2 * bend, rtol=1e-10, atol=0)


@each
def test_slopes(divergence: Divergence) -> None:
    h, once, second = divergence.slopes(R)
    assert not any(slope.requires_grad for slope in (h, once, second))
    torch.testing.assert_close(h, divergence.h(R))
    torch.testing.assert_close(once, R * by(divergence.h, R))
    torch.testing.assert_close(second, R**2 * twice(divergence.h, R))


def test_values_by_other_formulae() -> None:
    """E_q[f(p/q)] on a grid against closed forms, and against integrals over the middle density."""
    p, q = Normal(tensor(0.3), tensor(0.7)), Normal(tensor(-0.2), tensor(0.9))
    x = torch.linspace(-12, 12, 8001, dtype=F64)
    dens = {name: law.log_prob(x).exp() for name, law in (("p", p), ("q", q))}
    middle = (dens["p"] + dens["q"]) / 2

    def integral(y: Tensor) -> Tensor:
        return y.sum() * (x[1] - x[0])

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return integral(a * (a.log() - b.log()))

    overlap = (2 * p.scale * q.scale / (p.scale**2 + q.scale**2)).sqrt() * (
        -((p.loc - q.loc) ** 2) / (4 * (p.scale**2 + q.scale**2))
    ).exp()
    known = {
        ReverseKL(): kl_divergence(q, p),
        ForwardKL(): kl_divergence(p, q),
        Jeffreys(): kl_divergence(q, p) + kl_divergence(p, q),
        SquaredHellinger(): 4 * (1 - overlap),
        JensenShannon(): kl(dens["p"], middle) + kl(dens["q"], middle),
        Softened(): 2 * kl(middle, dens["p"]),
    }
    assert set(known) == set(DIVERGENCES)
    for divergence, value in known.items():
        ratio = (p.log_prob(x) - q.log_prob(x)).exp()
        close(integral(dens["q"] * divergence.f(ratio)), value.squeeze(), 1e-9)


# The gradient that f-distill descends


def pulled(objective: ScoreDistillation, seen: Noised, real: Tensor, fake: Tensor) -> Tensor:
    """The loss of these predictions of x0, [B]."""
    return along(seen.x, objective.shaped(seen, seen.eps_of(real), seen.eps_of(fake), None))  # type: ignore[arg-type]


def exact(divergence: Divergence, gan: GAN) -> FDistill:
    """Without any normalisation or clip."""
    return FDistill(shape=(), ratio=ByRatio(divergence=divergence, gan=gan, clip=ALL, bins=0))


@each
@seeds
@pytest.mark.parametrize("ratio", [0.5, 1.5])
def test_f_distill_on_mixtures(divergence: Divergence, seed: int, ratio: float) -> None:
    """ρ² times the gradient of D_f(p_t‖q_t) by means and scales, with q_t inside f as well."""
    line = OnLine(seed, ratio)

    def f(x: Tensor, t: Tensor, critic: Any) -> Tensor:
        return divergence.f((line.teacher.log_prob(x, t) - critic.log_prob(x, t)).exp())

    objective = exact(divergence, line.gan)
    close(line.moved(lambda *at: pulled(objective, *at)), ratio**2 * line.wanted(f), 1e-8)


@each
def test_f_distill_in_eight_dimensions(divergence: Divergence) -> None:
    space = InSpace(0, 8, 0.6)

    def f(seen: Noised, critic: Any) -> Tensor:
        log_r = space.teacher.log_prob(seen.x_t, seen.t) - critic.log_prob(seen.x_t, seen.t)
        return divergence.f(log_r.exp())

    objective = exact(divergence, space.gan)
    space.assert_descends(lambda *at: pulled(objective, *at), f, space.ratio**2, n=8192)


@pytest.mark.parametrize("divergence", [ForwardKL(), JensenShannon()], ids=lambda d: type(d).__name__)
def test_a_run_of_f_distill_descends_it(divergence: Divergence) -> None:
    """Through draw, noise, critic and discriminator of a run, with its normalisers in place: they start at h(1)."""
    teacher, student = with_exact_critic(0, 1, VP())
    a, b = student.a.detach().clone(), student.b.detach().clone()
    gan = Known(p=teacher, q=student.denoiser(VP()))
    objective = FDistill(
        shape=(), times=AtRatio(0.7), critic_steps=1, ratio=ByRatio(divergence=divergence, gan=gan, clip=ALL)
    )
    x = torch.linspace(-15, 15, 8001, dtype=F64)

    def wanted(a: Tensor, b: Tensor) -> Tensor:
        laws = [Normal(m[0], (s[0, 0] ** 2 + 0.49).sqrt()) for m, s in ((a, b), (teacher.means, teacher.factor[0]))]
        q, p = (law.log_prob(x) for law in laws)
        return (q.exp() * divergence.f((p - q).exp())).sum() * (x[1] - x[0])

    expected = 0.49 * torch.cat([g.flatten() for g in gradient(wanted, a, b)]) / divergence.h(tensor(1.0))
    draws = [descended(objective, teacher, Affine(a, b), batch=4096, seed=k) for k in range(16)]
    assert_mean([torch.cat([g["a"], g["b"].flatten()]) for g in draws], expected, beyond=7)


def ends(objective: ScoreDistillation) -> dict[str, Any]:
    """Student and critic of a short run of trained networks on data."""
    run = Case("DMD", "FewStep", "Trained", kind=EXACT).run(objective, steps=6)
    run.finish()
    state = run.state_dict()["roles"]
    return {name: state[name] for name in ("student", "critic")}


@pytest.mark.parametrize("gan", [GAN(), GAN(on="own")], ids=["critic", "own"])
def test_reverse_kl_is_dmd_to_the_bit(gan: GAN) -> None:
    plain = ends(DMD(critic_steps=2))
    assert not unequal(ends(FDistill(critic_steps=2, ratio=ByRatio(divergence=ReverseKL(), gan=gan))), plain)
    assert unequal(ends(FDistill(critic_steps=2, ratio=ByRatio(divergence=ForwardKL(), gan=gan))), plain)


def test_diff_instruct_is_dmd_without_shape() -> None:
    """g = ψ − T at levels and pace of the critic, in the tick of an actual run."""
    teacher, student = with_exact_critic(2, 2, EDM())
    objective = DMD(shape=(), times=LogNormal(), critic_steps=1)
    kept: list[tuple[Noised, Tensor]] = []

    run = distill(teacher, student, objective, steps=1, batch=32, optim=SGD(lr=0.0))
    (term,) = (term for term in run.terms if term.name == "dmd")
    assert term.every == 1

    def spy(tick: Any) -> Any:
        seen = tick.noised(LogNormal())
        kept.append((seen, objective.gradient(tick, seen)))
        return term.loss(tick)

    run.terms = tuple(replace(t, loss=spy) if t is term else t for t in run.terms)
    run.finish()
    ((seen, g),) = kept
    x_t, critic = seen.x_t.detach(), student.denoiser(EDM())
    close(g, critic.denoise(x_t, seen.t) - teacher.denoise(x_t, seen.t), 1e-10)


# The ratio: clipped, calibrated, and never coupled within a tick


def shown(ratio: ByRatio, steps: int, **settings: Any) -> tuple[list[Noised], list[Tensor], Run]:
    """What a run of several ticks shows a discriminator, and how much each example then counts."""
    teacher, student = with_exact_critic(1, 1, EDM())
    objective = FDistill(critic_steps=1, ratio=ratio, times=Uniform(lo=0.4, hi=0.9))
    seen: list[Noised] = []
    counts: list[Tensor] = []

    def spy(self: ByRatio, noised: Noised, tick: Any) -> Tensor:
        seen.append(noised)
        counts.append(counted(self, noised, tick))
        return counts[-1]

    counted = ByRatio.counts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ByRatio, "counts", spy)
        run = distill(teacher, student, objective, steps=steps, optim=SGD(lr=0.0), **settings)
        run.finish()
    return seen, counts, run


def known(**more: Any) -> Known:
    teacher, student = with_exact_critic(1, 1, EDM())
    return Known(p=teacher, q=student.denoiser(EDM()), **more)


def test_clip() -> None:
    gan = known()
    (seen,), (counts,), _ = shown(ByRatio(divergence=ForwardKL(), gan=gan, clip=(0.8, 1.3), bins=0), 1, batch=256)
    r = gan.logits(None, seen).exp()  # type: ignore[arg-type]
    close(counts, r.clamp(0.8, 1.3))
    assert (counts == 0.8).any() and (counts == 1.3).any() and ((counts > 0.8) & (counts < 1.3)).any()


@each
def test_running_means(divergence: Divergence) -> None:
    """By hand: a tick is calibrated by what the ticks before it saw, bin by bin, and then over all."""
    gan, keep, bins = known(off=(0.3, 0.1)), 0.6, 4
    seen, counts, _ = shown(ByRatio(divergence=divergence, gan=gan, clip=ALL, bins=bins, keep=keep), 5, batch=64)
    means, mean = torch.ones(bins, dtype=F64), divergence.h(tensor(1.0))[()]
    for noised, count in zip(seen, counts, strict=True):
        r = gan.logits(None, noised).exp()  # type: ignore[arg-type]
        into = (noised.process.fraction(noised.t) * bins).floor().long()
        h = divergence.h(r / means[into])
        close(count, h / mean)
        for k in into.unique():
            means[k] = keep * means[k] + (1 - keep) * r[into == k].mean()
        mean = keep * mean + (1 - keep) * h.mean()


def test_calibration_undoes_a_factor_at_each_level() -> None:
    """Off by a factor that depends on the level alone, r has mean 1 again after some ticks, and so has h."""
    gan = known(off=(0.0, 0.7))
    seen, counts, _ = shown(ByRatio(divergence=ForwardKL(), gan=gan, clip=ALL, bins=50, keep=0.95), 120, batch=512)
    true = [known().logits(None, noised).exp() for noised in seen[-20:]]  # type: ignore[arg-type]
    assert torch.cat(counts[-20:]).mean().item() == pytest.approx(1, abs=0.02)
    assert torch.cat(counts[-20:]).sub(torch.cat(true)).abs().mean() < 0.06


@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_count_alike(accumulate: int) -> None:
    ratio = ByRatio(divergence=JensenShannon(), gan=known(), bins=4, keep=0.5)
    _, whole, one = shown(ratio, 4, batch=32)
    _, parts, cut = shown(ratio, 4, batch=32, accumulate=accumulate)
    close(torch.cat(parts), torch.cat(whole))
    for name, value in one.cast.kept.items():
        close(cut.cast.kept[name].double(), value.double())  # type: ignore[union-attr]


def test_a_network_that_failed_leaves_the_means() -> None:
    _, counts, run = shown(ByRatio(divergence=JensenShannon(), gan=known(broken=True), bins=4), 3, batch=32)
    assert all(count.isnan().sum() == 1 for count in counts)
    assert all(value.isfinite().all() for value in run.cast.kept.values())  # type: ignore[union-attr]


# DiffRatio


@every_process
@pytest.mark.parametrize("d", [1, 8])
def test_the_slope_of_the_log_ratio_is_a_difference_of_noises(process: Process, d: int) -> None:
    """−σ·∇ln(p_t/q_t) = ε_T − ε_ψ, for any times and samples."""
    teacher, student = with_exact_critic(0, d, process)
    gan = Known(p=teacher, q=student.denoiser(process))
    rng, t = Rng("slope"), process.at_ratio(torch.logspace(-1, 1, 64, dtype=F64))
    x, eps = rng.normal(64, d, dtype=F64), rng.normal(64, d, dtype=F64)
    seen = Noised(x, process.add_noise(x, eps, t), t, eps, None, process)
    with torch.no_grad():  # as a frozen pass would be
        slope = LogRatio(gan=gan).eps(None, seen, None)  # type: ignore[arg-type]
    wanted = seen.eps_of(teacher.denoise(seen.x_t, t)) - seen.eps_of(student.denoiser(process).denoise(seen.x_t, t))
    assert not slope.requires_grad and wanted.abs().max() > 0.1
    close(slope, wanted, 1e-10)


@pytest.mark.parametrize("shape", [None, ForwardKL(), JensenShannon()], ids=["kl", "forward", "js"])
@pytest.mark.parametrize("d", [1, 8])
def test_diff_ratio_descends_what_exact_scores_do(shape: Divergence | None, d: int) -> None:
    """By an optimal classifier the run's gradient is that of teacher and perfect critic, under every divergence."""
    teacher, student = with_exact_critic(3, d, VP())
    gan = Known(p=teacher, q=student.denoiser(VP()))
    times, shapes = Uniform(lo=0.1, hi=0.9), () if shape is None else (ByRatio(divergence=shape, gan=gan, bins=0),)
    scores = ScoreDistillation(real=Teacher(), fake=Fake(), weight=Weight(sigma=1), times=times, shape=shapes)
    ratio = DiffRatio(real=LogRatio(gan=gan), weight=Weight(sigma=1), times=times, shape=shapes)
    start = student.a.detach().clone(), student.b.detach().clone()
    one, other = (descended(objective, teacher, Affine(*start), batch=128) for objective in (scores, ratio))
    for name, value in one.items():
        close(other[name], value, 1e-10)
        assert value.norm() > 1e-3


def test_diff_ratio_needs_no_pass_of_the_teacher() -> None:
    case = Case("DiffRatio", "FewStep", "Trained")
    run = case.run(steps=3)
    passes: list[None] = []
    run.cast.teacher.net.register_forward_pre_hook(lambda *_: passes.append(None))  # type: ignore[union-attr]
    run.finish()
    assert not passes and "critic" not in run.cast.roles
