"""The multistep and the ancestral sampler: order, values by hand, others' formulas, and exact variances."""

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from limbeck import (
    EDM,
    VP,
    GaussianMixture,
    Karras,
    Process,
    RectifiedFlow,
    Rng,
    TrigFlow,
    ancestral,
    dpm_solver,
    euler,
    sample,
)
from limbeck.errors import BadSetting
from tests.oracles.exact import F64, FlowMap, close, every_process, gaussian, mixture, seeds, tensor
from tests.oracles.test_samplers import Counted, error_on_mixture, flow_of_gaussian, grid

ETAS = pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
NONE = torch.zeros(1, dtype=F64)


def uneven(process: Process, seed: int = 0, n: int = 7) -> Tensor:
    """n levels with steps of different sizes, and a final 0."""
    ratios = (3 - 5 * Rng(("uneven", seed)).uniform(n).sort().values).exp()
    return torch.cat([process.at_ratio(ratios), NONE])


def standard(process: Process, mean: float = 0.0, std: float = 1.0) -> GaussianMixture:
    """N(mean, std²) on the line."""
    return gaussian(tensor(mean), tensor([std]), process)


def predicted(x: float, alpha: float, sigma: float, mean: float, std: float) -> float:
    """E[x0 | x_t] of N(mean, std²)."""
    return mean + alpha * std**2 * (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)


# DPM-Solver++(2M)


@every_process
@pytest.mark.parametrize("seed", range(2))
def test_dpm_solver_is_of_second_order_on_a_mixture(process: Process, seed: int) -> None:
    coarse, fine = (error_on_mixture(dpm_solver, process, seed, n) for n in (80, 160))
    assert coarse / fine == pytest.approx(4, rel=0.05)


def error_on_gaussian(process: Process, times: Tensor) -> float:
    mean, std, noise = tensor(0.8, -0.3), tensor(0.5, 1.4), Rng(0).normal(8, 2, dtype=F64)
    exact = flow_of_gaussian(process, process.sigma(times[0]) * noise, times[0], times[-1], mean, std)
    return (sample(dpm_solver(FlowMap(mean, std, process).teacher(), noise, times)) - exact).norm().item()


@every_process
def test_dpm_solver_is_of_second_order_on_a_gaussian(process: Process) -> None:
    coarse, fine = (error_on_gaussian(process, grid(process, n)) for n in (80, 160))
    assert coarse / fine == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("process", [RectifiedFlow(), TrigFlow()], ids=["RectifiedFlow", "TrigFlow"])
def test_dpm_solver_starts_from_pure_noise(process: Process) -> None:
    """Where α = 0 the first step is infinite in λ, and its neighbours are long: with n equal steps in t the error goes
    as ln(n)/n², of which a doubling leaves 1/3.4 or less; a method of first order would leave a half."""
    errors = [error_on_gaussian(process, torch.linspace(process.t_max, 0.05, n + 1, dtype=F64)) for n in (160, 320)]
    assert 3.3 < errors[0] / errors[1] < 4 and errors[1] < 2e-3


def test_dpm_solver_by_hand_where_the_variance_explodes() -> None:
    """N(0, 1) has E[x0 | x_t] = x_t/(1 + σ²); levels 4, 2, 1 are steps of ln 2, so that x̂0 = 1½·x0 − ½·x0'."""
    states = list(dpm_solver(standard(EDM()), tensor([1.0]), tensor(4.0, 2.0, 1.0, 0.0)))
    first = Fraction(4, 17)
    x = Fraction(2, 4) * 4 + (1 - Fraction(1, 2)) * first
    second = x / 5
    x = Fraction(1, 2) * x + (1 - Fraction(1, 2)) * (Fraction(3, 2) * second - Fraction(1, 2) * first)
    assert (second, x) == (Fraction(36, 85), Fraction(112, 85))
    for state, expected in zip(states, (Fraction(36, 17), x, x / 2), strict=True):
        assert state.x.item() == pytest.approx(float(expected), rel=1e-14)
    close(states[1].x0 if states[1].x0 is not None else NONE, tensor([36 / 85]))  # the prediction, not x̂0


def test_dpm_solver_by_hand_on_straight_lines_from_pure_noise() -> None:
    """Levels 1, ½, ¼, 1/10 have σ/α = ∞, 1, ⅓, 1/9: one infinite step, then two of ln 3."""
    states = list(dpm_solver(standard(RectifiedFlow()), tensor([1.0]), tensor(1.0, 0.5, 0.25, 0.1)))
    half = Fraction(1, 2)  # after the first step, for E[x0] = 0 there; and E[x0 | x_½ = ½] = ½ as well
    quarter = half * half + Fraction(3, 4) * (1 - Fraction(1, 3)) * half
    x0 = Fraction(3, 4) * quarter / (Fraction(9, 16) + Fraction(1, 16))
    last = Fraction(2, 5) * quarter + Fraction(9, 10) * Fraction(2, 3) * (x0 + half * (x0 - half))
    assert (quarter, x0, last) == (half, Fraction(3, 5), Fraction(59, 100))
    assert [state.x.item() for state in states] == pytest.approx([0.5, 0.5, 0.59], rel=1e-14)


@seeds
def test_dpm_solver_against_its_form_without_alpha(seed: int) -> None:
    """In τ = −ln σ: x ← (σ'/σ)·x − (e⁻ʰ − 1)·((1 + 1/2r)·D − D'/2r), r = h'/h, the form for α = 1."""
    times, x = uneven(EDM(), seed), 1.3
    states = dpm_solver(standard(EDM(), 0.4, 0.7), tensor([x]), times)
    tau, x, old = [-math.log(level) for level in times[:-1].tolist()], x * times[0].item(), 0.0
    for i in range(len(tau) - 1):
        sigma, d, h = math.exp(-tau[i]), 0.0, tau[i + 1] - tau[i]
        d = predicted(x, 1.0, sigma, 0.4, 0.7)
        r = (tau[i] - tau[i - 1]) / h
        mixed = d if i == 0 else (1 + 1 / (2 * r)) * d - old / (2 * r)
        x, old = math.exp(-tau[i + 1]) / sigma * x - math.expm1(-h) * mixed, d
        assert next(states).x.item() == pytest.approx(x, rel=1e-10)


@every_process
@seeds
def test_dpm_solver_against_its_form_in_differences(process: Process, seed: int) -> None:
    """x ← (σ'/σ)·x − α'(e⁻ʰ − 1)·D0 − ½·α'(e⁻ʰ − 1)·D1 with D0 = m0, D1 = (m0 − m1)/r, r = h'/h."""
    times, x = uneven(process, seed), 1.3
    states = dpm_solver(standard(process, 0.4, 0.7), tensor([x]), times)
    alpha, sigma = process.alpha(times).tolist(), process.sigma(times).tolist()
    lam, x, m1 = [math.log(a / s) for a, s in zip(alpha[:-1], sigma[:-1], strict=True)], x * sigma[0], 0.0
    for i in range(len(lam) - 1):
        m0, h = predicted(x, alpha[i], sigma[i], 0.4, 0.7), lam[i + 1] - lam[i]
        phi = alpha[i + 1] * (math.exp(-h) - 1)
        d1 = 0.0 if i == 0 else (m0 - m1) / ((lam[i] - lam[i - 1]) / h)
        x, m1 = sigma[i + 1] / sigma[i] * x - phi * m0 - 0.5 * phi * d1, m0
        assert next(states).x.item() == pytest.approx(x, rel=1e-9, abs=1e-12)
    assert next(states).x.item() == pytest.approx(predicted(x, alpha[-2], sigma[-2], 0.4, 0.7), rel=1e-9)


@every_process
@seeds
def test_dpm_solver_takes_the_same_path_in_every_process(process: Process, seed: int) -> None:
    noise, ends = Rng(seed).normal(6, 2, dtype=F64), []
    for p in (process, EDM()):
        times = uneven(p, seed)[:-1]
        ends.append(sample(dpm_solver(mixture(seed, process=p), noise, times)) / p.alpha(times[-1]))
    close(ends[0], ends[1], 1e-10)


@every_process
def test_the_first_step_of_dpm_solver_is_ddim(process: Process) -> None:
    teacher, noise, times = mixture(0, process=process), Rng(0).normal(6, 2, dtype=F64), uneven(process)
    close(next(dpm_solver(teacher, noise, times)).x, next(euler(teacher, noise, times)).x)
    one = torch.stack([times[0], times[-1]])
    assert torch.equal(sample(dpm_solver(teacher, noise, one)), sample(euler(teacher, noise, one)))


# ancestral


class Unit(Rng):
    """Row 0 gets no noise and row j a unit of the j-th draw only, so that rows tell what each draw adds."""

    def __init__(self, draws: int = 0):
        super().__init__(0)
        self.draws = draws

    def normal(self, n: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        self.draws += 1
        return torch.eye(n, dtype=dtype)[:, self.draws : self.draws + 1].expand(n, *shape)


def spreads(teacher: GaussianMixture, times: Tensor, eta: float) -> list[float]:
    """The variance of x after each step. A Gaussian teacher's x is affine in all noise, so no sampling is needed."""
    rows, rng = len(times) + 1, Unit()
    noise = rng.normal(rows, 1, dtype=F64)
    states = ancestral(teacher, noise, times, eta=eta, rng=rng)
    return [((state.x[1:] - state.x[:1]) ** 2).sum().item() for state in states]


def posterior(process: Process, t: Tensor, s: Tensor) -> tuple[float, float, float]:
    """q(x_s | x_t, x0) by Bayes' rule from x_s ~ N(α_s·x0, σ_s²) and x_t ~ N(a·x_s, τ²): (of x_t, of x0, variance)."""
    alpha, sigma = ([float(f(u)) for u in (t, s)] for f in (process.alpha, process.sigma))
    a = alpha[0] / alpha[1]
    tau = sigma[0] ** 2 - (a * sigma[1]) ** 2
    variance = 1 / (1 / sigma[1] ** 2 + a**2 / tau)
    return variance * a / tau, variance * alpha[1] / sigma[1] ** 2, variance


@every_process
@seeds
def test_without_fresh_noise_ancestral_is_ddim(process: Process, seed: int) -> None:
    teacher, noise, times = mixture(seed, process=process), Rng(seed).normal(6, 2, dtype=F64), uneven(process, seed)
    theirs = euler(teacher, noise, times)
    for ours, other in zip(ancestral(teacher, noise, times, eta=0, rng=Rng(1)), theirs, strict=True):
        assert torch.equal(ours.x, other.x) and (ours.t, ours.nfe) == (other.t, other.nfe)


@every_process
@pytest.mark.parametrize("top", ["noisy", "pure noise"])
def test_variances_follow_the_posterior(process: Process, top: str) -> None:
    """x_s ~ q(x_s | x_t, E[x0 | x_t]): v ← (c_t + c_0·g)²·v + variance with g the slope of the prediction."""
    times, std = uneven(process), 0.7
    if top == "pure noise":
        times = torch.cat([torch.full((1,), process.t_max, dtype=F64), times])
    v, got = process.sigma(times[0]).item() ** 2, spreads(standard(process, 0.4, std), times, 1.0)
    for t, s, variance in zip(times[:-2], times[1:-1], got[:-1], strict=True):
        alpha, sigma = process.alpha(t).item(), process.sigma(t).item()
        slope = predicted(1.0, alpha, sigma, 0.0, std)
        of_x, of_x0, fresh = posterior(process, t, s)
        v = (of_x + of_x0 * slope) ** 2 * v + fresh
        assert variance == pytest.approx(v, rel=1e-10)


@every_process
def test_a_step_lacks_the_spread_of_x0_only(process: Process) -> None:
    """Law of total variance: from Var x_t, K²·Var x_t + u² + c_0²·Var[x0 | x_t] = Var x_s, exactly, for η = 1."""
    t, s = process.at_ratio(tensor(3.0, 0.8))
    std, (_, of_x0, _) = 0.7, posterior(process, t, s)
    noise = Unit().normal(3, 1, dtype=F64)
    x = sample(ancestral(standard(process, 0.4, std), noise, torch.stack([t, s]), eta=1.0, rng=Unit(1)))
    by_x, by_z = ((x[1:] - x[:1]) / torch.stack([process.sigma(t), tensor(1.0)[0]])[:, None])[:, 0]
    before, after = (process.alpha(u) ** 2 * std**2 + process.sigma(u) ** 2 for u in (t, s))
    unknown = std**2 * process.sigma(t) ** 2 / before
    close(by_x**2 * before + by_z**2 + of_x0**2 * unknown, after)


@every_process
@ETAS
def test_a_point_keeps_its_variance(process: Process, eta: float) -> None:
    """Where x0 is certain, x_s ~ N(α_s·x0, σ_s²) at every level and for every η."""
    times = uneven(process)
    close(tensor(*spreads(standard(process, 0.4, 0.0), times, eta)), process.sigma(times[1:]) ** 2)


@every_process
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_variances_converge_at_first_order(process: Process, eta: float) -> None:
    errors = []
    for n in (80, 160):
        times = grid(process, n, top=200.0)
        exact = process.alpha(times[-1]) ** 2 * 0.7**2 + process.sigma(times[-1]) ** 2
        errors.append((spreads(standard(process, 0.4, 0.7), times, eta)[-1] - exact).item())
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)


@ETAS
def test_ancestral_against_its_form_with_two_sigmas(eta: float) -> None:
    """σ_up = η·√(σ'²(σ² − σ'²)/σ²), σ_down = √(σ'² − σ_up²): x + (x − D)/σ·(σ_down − σ) + σ_up·z, for α = 1."""
    times, z = uneven(EDM()), Rng(4)
    sigma, x = times.tolist(), 1.3 * times[0].item()
    for i, state in enumerate(ancestral(standard(EDM(), 0.4, 0.7), tensor([1.3]), times, eta=eta, rng=Rng(4))):
        up = eta * math.sqrt(sigma[i + 1] ** 2 * (sigma[i] ** 2 - sigma[i + 1] ** 2) / sigma[i] ** 2)
        down = math.sqrt(sigma[i + 1] ** 2 - up**2)
        d = predicted(x, 1.0, sigma[i], 0.4, 0.7)
        fresh = z.normal(1, 1, dtype=F64).item() if sigma[i + 1] else 0.0
        x = x + (x - d) / sigma[i] * (down - sigma[i]) + up * fresh
        assert state.x.item() == pytest.approx(x, rel=1e-10)


@ETAS
def test_ancestral_against_its_form_in_products_of_alphas(eta: float) -> None:
    """For ᾱ = α² and σ² = 1 − ᾱ: s² = η²·(1 − ᾱ')/(1 − ᾱ)·(1 − ᾱ/ᾱ'), √ᾱ'·x0 + √(1 − ᾱ' − s²)·ε + s·z."""
    process, z = VP(), Rng(4)
    times = uneven(process)
    bar, x = (process.alpha(times) ** 2).tolist(), 1.3 * process.sigma(times[0]).item()
    for i, state in enumerate(ancestral(standard(process, 0.4, 0.7), tensor([1.3]), times, eta=eta, rng=Rng(4))):
        now, then = bar[i], bar[i + 1]
        x0 = predicted(x, math.sqrt(now), math.sqrt(1 - now), 0.4, 0.7)
        eps = (x - math.sqrt(now) * x0) / math.sqrt(1 - now)
        s = eta * math.sqrt((1 - then) / (1 - now) * (1 - now / then))
        fresh = z.normal(1, 1, dtype=F64).item() if then < 1 else 0.0
        x = math.sqrt(then) * x0 + math.sqrt(1 - then - s**2) * eps + s * fresh
        assert state.x.item() == pytest.approx(x, rel=1e-7)


def test_rows_of_fresh_noise_are_those_of_the_whole_batch() -> None:
    teacher, noise, times = mixture(0), Rng(0).normal(6, 2, dtype=F64), uneven(EDM())
    whole = sample(ancestral(teacher, noise, times, rng=Rng(5)))
    part = sample(ancestral(teacher, noise[2:4], times, rng=Rng(5, part=slice(2, 4), total=6)))
    close(part, whole[2:4])
    assert not torch.allclose(whole, sample(ancestral(teacher, noise, times, rng=Rng(6))))


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_eta_out_of_range_is_refused(eta: float) -> None:
    with pytest.raises(BadSetting, match="eta must be between 0 and 1"):
        next(ancestral(mixture(0), torch.zeros(1, 2, dtype=F64), tensor(1.0, 0.0), eta=eta))


# both

both = pytest.mark.parametrize("sampler", [dpm_solver, ancestral], ids=["dpm_solver", "ancestral"])


@every_process
@both
def test_a_last_step_to_zero_returns_the_prediction(sampler: Callable, process: Process) -> None:
    teacher, noise = mixture(0, process=process), Rng(0).normal(6, 2, dtype=F64)
    *_, before, last = sampler(teacher, noise, Karras(sigma_max=20.0).grid(9, process))
    assert last.t == 0 and torch.equal(last.x, teacher.denoise(before.x, tensor(before.t).expand(6)))
    assert torch.equal(last.x, last.x0)


@both
@pytest.mark.parametrize("n", [1, 2, 18])
def test_one_pass_a_step(sampler: Callable, n: int) -> None:
    teacher = Counted(mixture(0))
    for state in sampler(teacher, torch.zeros(2, 2, dtype=F64), torch.cat([grid(EDM(), n)[:n], NONE])):
        assert state.nfe == teacher.passes
    assert teacher.passes == n


@both
@every_process
def test_samples_keep_type_shape_and_condition(sampler: Callable, process: Process) -> None:
    """float32 in, float32 out and near to float64; the condition reaches every pass."""
    times = torch.cat([torch.full((1,), process.t_max, dtype=F64), uneven(process)])
    noise, cond = Rng(0).normal(64, 2, dtype=F64), torch.arange(64) % 2
    teacher = mixture(1, k=4, classes=2, process=process)
    exact = sample(sampler(teacher, noise, times, cond))
    other = sample(sampler(teacher, noise, times, 1 - cond))
    x = sample(sampler(teacher.float(), noise.float(), times, cond))
    assert x.dtype == torch.float32 and x.shape == noise.shape
    if sampler is dpm_solver:  # fresh noise is not the same in float32
        close(x.double(), exact, 1e-3)
    assert ((exact - other).norm(dim=1) > 1e-3).all()
