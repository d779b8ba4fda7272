"""SIM and Uni-Instruct: gradients through both denoisers, against divergences on grids and in eight dimensions.

Notation: p_t the teacher's diffused density, q_t the student's, r = p_t/q_t, ρ = σ/α; T and ψ the exact denoisers, so
that ψ − T = ρ²·(∇ln q_t − ∇ln p_t) where α = 1.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck import (
    CFG,
    EDM,
    L2,
    SGD,
    SIM,
    VP,
    ByRatio,
    Dataset,
    Distance,
    Divergence,
    Draw,
    ForwardKL,
    JensenShannon,
    Noised,
    Process,
    PseudoHuber,
    ReverseKL,
    Rng,
    SiD,
    Student,
    UniInstruct,
    Weight,
    along,
    distill,
    expanded,
    identity_score,
    implicit_matching,
)
from tests.oracles.densities import InSpace, Known, OnLine, OnNarrowLine
from tests.oracles.exact import (
    F64,
    Affine,
    AtRatio,
    assert_mean,
    close,
    descended,
    every_process,
    gradient,
    mixture,
    seeds,
    tensor,
)
from tests.oracles.test_divergences import ALL, each
from tests.oracles.test_score_distillation import fisher, flat, with_exact_critic

DISTANCES = (L2(), PseudoHuber(c=0.4))
apart = pytest.mark.parametrize("distance", DISTANCES, ids=lambda d: type(d).__name__)


# Score implicit matching


@apart
@pytest.mark.parametrize("shape", [(5,), (1, 4, 4)], ids=str)
def test_slope_of_a_distance(distance: Distance, shape: tuple[int, ...]) -> None:
    y = Rng("y").normal(6, *shape, dtype=F64)
    close(distance.slope(y), gradient(lambda y: distance.value(y).sum(), y)[0])
    assert distance.value(torch.zeros(1, *shape, dtype=F64)).item() == 0
    close(distance.value(y)[2:3], distance.value(y[2:3]))


def test_pseudo_huber_is_the_norm_far_off_and_its_square_nearby() -> None:
    y = tensor([3.0, 4.0])
    close(PseudoHuber(c=1e-6).value(y), tensor(5.0), 1e-6)
    close(PseudoHuber(c=1e3).value(y), tensor(25 / 2e3), 1e-6)
    assert PseudoHuber(c=0.3).slope(1e6 * y).norm().item() == pytest.approx(1, abs=1e-6)


def test_l2_is_twice_sid_at_one() -> None:
    """−⟨2(ψ − T), ψ − x⟩ = 2⟨T − ψ, (T − x) − (T − ψ)⟩, value and gradients."""
    x, real, fake = (Rng((3, name)).normal(6, 3, dtype=F64) for name in ("x", "real", "fake"))

    def sim(*at: Tensor) -> Tensor:
        return implicit_matching(*at, L2())

    def sid(*at: Tensor) -> Tensor:
        return 2 * identity_score(*at, alpha=1.0, normalise=False)

    close(sim(x, real, fake), sid(x, real, fake))
    for one, other in zip(
        gradient(lambda *at: sim(*at).sum(), x, real, fake),
        gradient(lambda *at: sid(*at).sum(), x, real, fake),
        strict=True,
    ):
        close(one, other)


def test_a_run_of_sim_by_l2_is_twice_sid_at_one() -> None:
    teacher, student = with_exact_critic(0, 2, VP())
    start = student.a.detach(), student.b.detach()
    one = descended(SIM(distance=L2()), teacher, Affine(*start), batch=64)
    other = descended(SiD(alpha=1.0, normalise=False), teacher, Affine(*start), batch=64)
    for name, value in other.items():
        close(one[name], 2 * value, 1e-11)
        assert value.norm() > 1e-3


@apart
@seeds
@pytest.mark.parametrize("ratio", [0.3, 1.5])
def test_sim_on_mixtures(distance: Distance, seed: int, ratio: float) -> None:
    """The gradient of ∫ q_sg·d(ψ − T) by means and scales: the density stays, ψ follows."""
    line = OnLine(seed, ratio)
    frozen = line.critic(line.m, line.s)

    def gap(x: Tensor, t: Tensor, critic: Any) -> Tensor:
        y = critic.denoise(x, t) - line.teacher.denoise(x, t)
        still = (frozen.log_prob(x, t) - critic.log_prob(x, t)).exp()  # takes the moving density out
        return still * distance.value(y)

    def loss(seen: Noised, real: Tensor, fake: Tensor) -> Tensor:
        return implicit_matching(seen.x, real, fake, distance)

    close(line.moved(loss), line.wanted(gap), 1e-8)


@apart
def test_sim_in_eight_dimensions(distance: Distance) -> None:
    space = InSpace(1, 8, 0.6)

    def frozen(seen: Noised, critic: Any) -> Tensor:
        x_t = seen.x_t.detach()
        return distance.value(critic.denoise(x_t, seen.t) - space.teacher.denoise(x_t, seen.t))

    space.assert_descends(lambda seen, real, fake: implicit_matching(seen.x, real, fake, distance), frozen, 1.0)


@pytest.mark.parametrize("ratio", [0.4, 1.5])
def test_weight_of_sim(ratio: float) -> None:
    teacher, student = with_exact_critic(0, 1, EDM())
    start = student.a.detach(), student.b.detach()
    one, other = (
        descended(SIM(times=AtRatio(ratio), weight=w), teacher, Affine(*start), batch=32)
        for w in (Weight(sigma=0.0), Weight(sigma=1.0, alpha=-1.0))
    )
    close(flat(other), ratio * flat(one))


# Guidance on the critic


def test_guidance_on_the_critic() -> None:
    """Zero-CFG compares the conditional teacher with the critic without condition, Anti-CFG with 2ψ(∅) − ψ(c)."""
    teacher = mixture(0, k=4, d=2, classes=2)
    critic = mixture(5, k=4, d=2, classes=2)
    teacher.network = lambda: critic.clone(trainable=True)
    cond = torch.arange(16) % 2

    class Classes(Student):
        def __init__(self) -> None:
            super().__init__()
            self.x = torch.nn.Parameter(Rng("start").normal(16, 2, dtype=F64))

        def draw(self, n: int, given: Any, rng: Rng) -> Draw:
            return Draw(self.x[:n], cond[:n])

    seen: list[Noised] = []

    def loss_of(scale: float | None) -> Tensor:
        guidance = None if scale is None else CFG(scale=scale)
        objective = SiD(alpha=1.0, normalise=False, critic_guidance=guidance)
        student = Classes()
        run = distill(teacher, student, objective, Dataset(x=student.x.detach()), steps=1, batch=16, optim=SGD(lr=0.0))
        (term,) = (term for term in run.terms if term.name == "sid")
        kept: list[Tensor] = []

        def spy(tick: Any) -> Any:
            seen.append(tick.noised(objective.times).detached())
            loss = term.loss(tick)
            kept.append(loss.value.detach())
            return loss

        run.terms = tuple(replace(t, loss=spy) if t is term else t for t in run.terms)
        run.finish()
        return kept[0]

    for scale in (None, 0.0, -1.0):
        value, at = loss_of(scale), seen[-1]
        with_c, without = (critic.denoise(at.x_t, at.t, c) for c in (cond, None))
        fake = with_c if scale is None else without + scale * (with_c - without)
        close(value, identity_score(at.x, teacher.denoise(at.x_t, at.t, cond), fake, normalise=False), 1e-10)


# The expansion of f-divergences


def slopes_at(divergence: Divergence, gan: Known, seen: Noised) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        return ByRatio(divergence=divergence, gan=gan, clip=ALL, bins=0).slopes(seen, None)  # type: ignore[arg-type]


def loss_of(divergence: Divergence, line: OnLine | InSpace, alpha: float = 0.5) -> Callable[..., Tensor]:
    """`expanded` at exact ratios."""
    gan = line.gan

    def loss(seen: Noised, real: Tensor, fake: Tensor) -> Tensor:
        slopes = slopes_at(divergence, gan, seen.detached())
        return expanded(seen.x, real, fake, seen.t, slopes, alpha=alpha)

    return loss


def gained(divergence: Divergence, teacher: Any) -> Callable[..., Tensor]:
    """h(r)·‖ψ − T‖², whose mean under q_t is ρ⁴ times what D_f gains at this level."""

    def value(x_t: Tensor, t: Tensor, critic: Any) -> Tensor:
        r = (teacher.log_prob(x_t, t) - critic.log_prob(x_t, t)).exp()
        return divergence.h(r) * ((critic.denoise(x_t, t) - teacher.denoise(x_t, t)) ** 2).sum(1)

    return value


@each
@seeds
@pytest.mark.parametrize("ratio", [0.5, 1.5])
def test_one_level_of_the_expansion(divergence: Divergence, seed: int, ratio: float) -> None:
    """Half the gradient of ρ⁴·E_q[h(r)·‖u‖²], with density, ratio and ψ all moving."""
    line = OnLine(seed, ratio)
    close(line.moved(loss_of(divergence, line)), line.wanted(gained(divergence, line.teacher)) / 2, 1e-7)


@each
@seeds
def test_one_level_at_a_frozen_density(divergence: Divergence, seed: int) -> None:
    """With α = 1: density and ratio stay, ψ follows; for the reverse KL divergence this is SIM's gradient."""
    line = OnLine(seed, 0.8)
    frozen = line.critic(line.m, line.s)

    def still(x_t: Tensor, t: Tensor, critic: Any) -> Tensor:
        same = (frozen.log_prob(x_t, t) - critic.log_prob(x_t, t)).exp()
        h = divergence.h((line.teacher.log_prob(x_t, t) - frozen.log_prob(x_t, t)).exp())
        return same * h * ((critic.denoise(x_t, t) - line.teacher.denoise(x_t, t)) ** 2).sum(1)

    close(line.moved(loss_of(divergence, line, alpha=1.0)), line.wanted(still) / 2, 1e-7)


@each
def test_one_level_in_eight_dimensions(divergence: Divergence) -> None:
    space = InSpace(2, 8, 0.6)
    value = gained(divergence, space.teacher)
    space.assert_descends(loss_of(divergence, space), lambda seen, critic: value(seen.x_t, seen.t, critic), 0.5)


LEVELS, STEP = torch.linspace(-8, 8, 33, dtype=F64).exp(), 0.5
"""Even in ln ρ: the integrand falls as ρ² to one side and as ρ⁻² to the other, so that 1e-7 of it is left out."""


def over_levels(at: Callable[[float], Tensor]) -> Tensor:
    """∫ at(ρ)·ρ⁻² d ln ρ by the trapezoidal rule."""
    return torch.stack([at(float(level)) / level**2 * STEP for level in LEVELS]).sum(0)


@each
@pytest.mark.parametrize("seed", range(2))
def test_the_expansion_is_the_divergence(divergence: Divergence, seed: int) -> None:
    """D_f(p₀‖q₀) = ∫ ρ⁻⁴·E_q[h(r)·‖ψ − T‖²]·ρ dρ, and so for its gradient by mean and scale of the student."""
    clean = OnNarrowLine(seed, 1e-6)

    def f(x: Tensor, t: Tensor, critic: Any) -> Tensor:
        return divergence.f((clean.teacher.log_prob(x, t) - critic.log_prob(x, t)).exp())

    def value(ratio: float) -> Tensor:
        line = OnNarrowLine(seed, ratio)
        expand = gained(divergence, line.teacher)
        critic = line.critic(line.m, line.s)
        return line.seen(lambda seen, *_: expand(seen.x_t, seen.t, critic))(line.m, line.s)

    def slope(ratio: float) -> Tensor:
        line = OnNarrowLine(seed, ratio)
        return line.moved(loss_of(divergence, line))

    close(over_levels(value), clean.over_density(f)(clean.m, clean.s), 1e-6)
    close(2 * over_levels(slope), clean.wanted(f), 1e-6)


def test_diff_instruct_is_what_is_gained_beyond_a_level() -> None:
    """KL(q_s‖p_s) is the expansion from ρ_s on: its gradient, Diff-Instruct's (ψ − T)/ρ_s², is the integral of ours."""
    level = 0.5

    def ours(ratio: float) -> Tensor:
        line = OnNarrowLine(3, ratio)
        return line.moved(loss_of(ReverseKL(), line))

    nodes, weights = np.polynomial.legendre.leggauss(16)  # of u = (ρ_s/ρ)², in which ρ⁻² d ln ρ = du/(2ρ_s²)
    parts = [w / 2 * ours(level / ((1 + x) / 2) ** 0.5) for x, w in zip(nodes, weights, strict=True)]
    line = OnNarrowLine(3, level)
    theirs = line.moved(lambda seen, real, fake: along(seen.x, fake - real))
    close(torch.stack(parts).sum(0), theirs, 1e-8)


@every_process
@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_reverse_kl_is_sid(process: Process, alpha: float) -> None:
    """h = 1 leaves ⟨T − ψ, (T − x) − α(T − ψ)⟩: value and all gradients; at α = 1 it is half of SIM by L2."""
    x, real, fake = (Rng((4, name)).normal(6, 3, dtype=F64) for name in ("x", "real", "fake"))
    ratio = process.ratio(process.at_ratio(torch.logspace(-1, 1, 6, dtype=F64)))
    slopes = ReverseKL().slopes(torch.linspace(0.1, 3, 6, dtype=F64))
    corners = [lambda *at: identity_score(*at, alpha=alpha, normalise=False)]
    corners += [lambda *at: implicit_matching(*at, L2()) / 2] * (alpha == 1)
    for corner in corners:
        close(expanded(x, real, fake, ratio, slopes, alpha=alpha), corner(x, real, fake))
        ours = gradient(lambda *at: expanded(*at, ratio, slopes, alpha=alpha).sum(), x, real, fake)
        for one, other in zip(ours, gradient(lambda *at, c=corner: c(*at).sum(), x, real, fake), strict=True):
            close(one, other)


@pytest.mark.parametrize("normalise", [False, True])
def test_a_run_under_reverse_kl_is_sid(normalise: bool) -> None:
    teacher, student = with_exact_critic(0, 2, VP())
    start = student.a.detach(), student.b.detach()
    gan = Known(p=teacher, q=student.denoiser(VP()))
    uni = UniInstruct(ratio=ByRatio(divergence=ReverseKL(), gan=gan), alpha=0.8, normalise=normalise)
    one = descended(uni, teacher, Affine(*start), batch=64)
    other = descended(SiD(alpha=0.8, normalise=normalise), teacher, Affine(*start), batch=64)
    close(flat(one), flat(other), 1e-11)


@pytest.mark.parametrize("divergence", [ReverseKL(), ForwardKL(), JensenShannon()], ids=lambda d: type(d).__name__)
@pytest.mark.parametrize(("process", "ratio"), [(VP(), 0.6), (EDM(), 1.5)], ids=["vp", "edm"])
def test_a_run_of_uni_instruct(divergence: Divergence, process: Process, ratio: float) -> None:
    """Through a run, in a process that scales too: half the gradient of ρ⁴·E_q[h(r)·‖u‖²] over h(1)."""
    teacher, student = with_exact_critic(1, 1, process)
    a, b = student.a.detach().clone(), student.b.detach().clone()
    gan = Known(p=teacher, q=student.denoiser(process))
    objective = UniInstruct(
        times=AtRatio(ratio), normalise=False, ratio=ByRatio(divergence=divergence, gan=gan, clip=ALL)
    )
    t, x = process.at_ratio(tensor(ratio)), torch.linspace(-15, 15, 8001, dtype=F64)[:, None]
    at = t.expand(len(x))

    def wanted(a: Tensor, b: Tensor) -> Tensor:
        critic = InSpace.critic(None, a, b)  # type: ignore[arg-type]
        critic.process = process
        density = critic.log_prob(x, at).exp()
        return (density * gained(divergence, teacher)(x, at, critic)).sum() * (x[1, 0] - x[0, 0]) / 2

    expected = torch.cat([g.flatten() for g in gradient(wanted, a, b)]) / divergence.h(tensor(1.0))
    if divergence == ReverseKL():
        fishers = gradient(fisher(teacher, ratio, frozen=False), a, b)
        close(expected, torch.cat([g.flatten() for g in fishers]) / 2, 1e-8)
    draws = [flat(descended(objective, teacher, Affine(a, b), batch=8192, seed=k)) for k in range(16)]
    assert_mean(draws, expected, beyond=7)


def test_settings_of_uni_instruct() -> None:
    """Weight and normaliser act on each example's loss."""
    teacher, student = with_exact_critic(1, 1, EDM())
    start = student.a.detach(), student.b.detach()
    gan = Known(p=teacher, q=student.denoiser(EDM()))
    ratio = ByRatio(divergence=JensenShannon(), gan=gan)
    plain = UniInstruct(times=AtRatio(0.5), ratio=ratio, normalise=False)
    one, other = (descended(o, teacher, Affine(*start), batch=32) for o in (plain, replace(plain, weight=Weight())))
    close(flat(other), 0.2 * flat(one))
    assert (flat(descended(replace(plain, normalise=True), teacher, Affine(*start), batch=32)) - flat(one)).norm() > 0
