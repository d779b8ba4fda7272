"""Processes: conversions, inverses and rates against each other and against autodiff."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.func import jvp

from limbeck import EDM, VP, ExactDataset, Form, Process, RectifiedFlow, Rng, Trained, TrigFlow, like
from limbeck.problems.networks import ResidualMLP
from tests.oracles.exact import F64, PROCESSES, close, every_process, levels, mixture, seeds, tensor

FORMS: tuple[Form, ...] = get_args(Form)
SHAPES = ((3,), (2, 4, 4))


def noised(process: Process, seed: int, shape: tuple[int, ...] = (3,)):
    """(x0, ε, t, x_t) at levels over the whole range."""
    rng, t = Rng(("process", seed)), levels(process)
    x0, eps = (rng.normal(len(t), *shape, dtype=F64) for _ in range(2))
    return x0, eps, t, process.add_noise(x0, eps, t)


@every_process
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("source", FORMS)
def test_round_trip_of_forms(process: Process, source: Form, shape: tuple[int, ...]) -> None:
    x0, eps, t, x_t = noised(process, 0, shape)

    def value(form: Form) -> Tensor:
        a, b = process.coefficients(form, t)
        return like(a, x0) * x0 + like(b, x0) * eps

    for target in FORMS:
        there = process.convert(value(source), x_t, t, source, target)
        close(there, value(target))
        close(process.convert(there, x_t, t, target, source), value(source))


@every_process
def test_converting_a_form_to_itself_changes_nothing(process: Process) -> None:
    value, _, t, x_t = noised(process, 1)  # any number is a prediction, also one that is no sample of the process
    for form in FORMS:
        close(process.convert(value, x_t, t, form, form), value)


@every_process
@seeds
def test_forms_are_what_they_are_named_after(process: Process, seed: int) -> None:
    x0, eps, t, x_t = noised(process, seed)

    def clean_log_density(x):  # ln N(x; αx0, σ²)
        return -((x - like(process.alpha(t), x0) * x0) ** 2 / (2 * like(process.sigma(t), x0) ** 2)).sum()

    score = torch.func.grad(clean_log_density)(x_t)
    speed = jvp(lambda t: process.add_noise(x0, eps, t), (t,), (torch.ones_like(t),))[1]
    close(process.convert(eps, x_t, t, "eps", "score"), score)
    close(process.convert(eps, x_t, t, "eps", "flow"), speed)
    close(process.convert(x0, x_t, t, "x0", "flow"), speed)


def test_v_is_the_derivative_by_the_angle() -> None:
    # With α = cos φ, σ = sin φ, x_t turns by dx_t/dφ = α·ε − σ·x0 (arXiv 2202.00512, appendix D).
    x0, eps, t, x_t = noised(VP(), 2)
    phi = torch.atan2(VP().sigma(t), VP().alpha(t))[:, None]
    turn = jvp(lambda phi: phi.cos() * x0 + phi.sin() * eps, (phi,), (torch.ones_like(phi),))[1]
    close(VP().convert(x0, x_t, t, "x0", "v"), turn)


@every_process
def test_rates_are_derivatives(process: Process) -> None:
    t = torch.linspace(process.t_min, 0.999 * process.t_max, 101, dtype=F64)
    for level, rate in zip((process.alpha, process.sigma), process.rates(t), strict=True):
        close(rate, jvp(level, (t,), (torch.ones_like(t),))[1])


@every_process
def test_at_ratio_inverts_ratio(process: Process) -> None:
    t = torch.linspace(process.t_min, 0.999 * process.t_max, 101, dtype=F64)
    close(process.at_ratio(process.ratio(t)), t)
    ratio = torch.logspace(-3, 2, 101, dtype=F64)
    torch.testing.assert_close(process.ratio(process.at_ratio(ratio)), ratio, rtol=1e-11, atol=0)


@every_process
def test_ends_of_the_ratio(process: Process) -> None:
    """No signal at all is a level too: quantile functions reach it at u = 1."""
    ends = process.at_ratio(tensor(0.0, math.inf))
    assert ends[0] == 0
    assert not ends.isnan().any() and ends[1] >= process.t_max


@every_process
def test_clock_runs_from_clean_to_noise(process: Process) -> None:
    t = process.at_fraction(torch.linspace(0, 1, 101, dtype=F64))
    close(t[[0, -1]], tensor(process.t_min, process.t_max))
    assert (t.diff() >= 0).all() and (process.ratio(t[t < process.t_max]).diff() >= 0).all()


@pytest.mark.parametrize("process", [VP(), RectifiedFlow(), TrigFlow()], ids=lambda p: type(p).__name__)
def test_clock_is_linear(process: Process) -> None:
    u = torch.linspace(0.01, 1, 12, dtype=F64)
    close(process.at_fraction(u), u * process.t_max)


def test_clock_of_edm_is_its_grid() -> None:
    u = torch.linspace(0, 1, 18, dtype=F64)
    close(EDM().at_fraction(u) ** (1 / 7), 0.002 ** (1 / 7) + u * (80 ** (1 / 7) - 0.002 ** (1 / 7)))


def test_identities_between_signal_and_noise() -> None:
    t = torch.linspace(1e-3, 0.999, 50, dtype=F64)
    close(VP().alpha(t) ** 2 + VP().sigma(t) ** 2, torch.ones_like(t))
    close(RectifiedFlow().alpha(t) + RectifiedFlow().sigma(t), torch.ones_like(t))
    trig = TrigFlow(sigma_data=0.3)
    close(trig.alpha(t) ** 2 + (trig.sigma(t) / 0.3) ** 2, torch.ones_like(t))


def test_vp_solves_its_stochastic_equation() -> None:
    # dx = −½βx dt + √β dW gives d ln α/dt = −β/2 and d(σ²)/dt = β(1 − σ²), β = β₀ + t(β₁ − β₀).
    t = torch.linspace(1e-3, 1, 50, dtype=F64)
    beta, one = 0.1 + t * 19.9, torch.ones_like(t)
    close(jvp(lambda t: VP().alpha(t).log(), (t,), (one,))[1], -beta / 2)
    close(jvp(lambda t: VP().sigma(t) ** 2, (t,), (one,))[1], beta * (1 - VP().sigma(t) ** 2))


def network() -> Trained:
    torch.manual_seed(0)
    net = Trained(ResidualMLP(shape=(2,), width=16, blocks=2)).double()
    with torch.no_grad():  # a fresh network may end in zeros; this one must depend on its input and level
        for p in net.parameters():
            p.normal_(std=0.3)
    return net


def on(kind: str, process: Process):
    if kind == "mixture":
        return mixture(0, process=process)
    if kind == "dataset":
        return ExactDataset(Rng("points").normal(7, 2, dtype=F64), process=process)
    net = network()
    net.process = process
    return net


@pytest.mark.parametrize("kind", ["mixture", "dataset", "trained"])
def test_one_level_has_one_denoiser_in_every_process(kind: str) -> None:
    """x0 depends on x_t/α and σ/α alone, so processes differ in clocks and scales only."""
    ratio = torch.logspace(-2, 1.5, 9, dtype=F64)
    clean = Rng("scaled").normal(9, 2, dtype=F64) * (1 + ratio[:, None])
    results = []
    for process in PROCESSES:
        t = process.at_ratio(ratio)
        results.append(on(kind, process).denoise(like(process.alpha(t), clean) * clean, t))
    for result in results[1:]:
        close(result, results[0], 1e-11)
    assert results[0].std() > 0.1


def test_levels_are_rounded_last() -> None:
    # In float32 π/2 − 10⁻⁶ has an error of 4 % of α = cos t, which is lost if t is rounded before the cosine.
    t, one = tensor(math.pi / 2 - 1e-6), torch.ones(1, 1)
    signal = TrigFlow().add_noise(one, torch.zeros(1, 1), t)
    assert signal.dtype == torch.float32
    torch.testing.assert_close(signal, torch.full((1, 1), 1e-6), rtol=1e-6, atol=0)
