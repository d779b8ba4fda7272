"""Consistency and regression against the exact flow of a Gaussian, and the distance that they share."""

from math import pi

import pytest
import torch
from torch import Tensor

from limbeck import (
    EMA,
    SGD,
    Adam,
    Consistency,
    Cosine,
    Dataset,
    Karras,
    OneStep,
    Process,
    Regression,
    Rng,
    distill,
    heun,
    pseudo_huber,
    sample,
)
from tests.oracles.exact import F64, FlowMap, close, descended, every_process, gradient, tensor

MEAN, STD = tensor(0.8, -0.3), tensor(0.5, 1.4)
TIMES = Karras(sigma_max=20.0)


def student_of(flow: FlowMap) -> OneStep:
    """The map as a trainable one-step generator."""
    return OneStep(flow.requires_grad_(), shape=(len(flow.mean),), ratio=20.0)


def data(n: int) -> Tensor:
    """Samples of the teacher."""
    return MEAN + STD * Rng("data").normal(n, 2, dtype=F64)


# The distance


@pytest.mark.parametrize("shape", [(4,), (1, 3, 3)], ids=str)
@pytest.mark.parametrize("c", [1e-3, 0.1, 3.0])
def test_pseudo_huber(shape: tuple[int, ...], c: float) -> None:
    """√(‖d‖² + c²D) − c√D; its gradient is d/√(‖d‖² + c²D)."""
    a, b = Rng(0).normal(5, *shape, dtype=F64), Rng(1).normal(5, *shape, dtype=F64)
    d, size = (a - b).flatten(1), a[0].numel()
    root = ((d**2).sum(1) + c**2 * size).sqrt()
    close(pseudo_huber(a, b, c=c), root - c * size**0.5)
    (g,) = gradient(lambda a: pseudo_huber(a, b, c=c).sum(), a)
    close(g.flatten(1), d / root[:, None])
    assert (g.flatten(1).norm(dim=1) < 1).all()


def test_pseudo_huber_lies_between_a_norm_and_a_square() -> None:
    a, b = Rng(0).normal(5, 4, dtype=F64), Rng(1).normal(5, 4, dtype=F64)
    norm = (a - b).norm(dim=1)
    close(pseudo_huber(a, b, c=0.0), norm)
    close(pseudo_huber(a, b, c=1e-9), norm, 1e-8)
    c = 1e4
    close(pseudo_huber(a, b, c=c) * 2 * c * 2, norm**2, 1e-6)  # ‖d‖²/(2c√D) with √D = 2
    (g,) = gradient(lambda a: pseudo_huber(a, a.detach(), c=0.1).sum(), a)
    assert torch.equal(g, torch.zeros_like(g))


# The consistency map


def consistency_loss(flow: FlowMap, interval: float, seed: int = 0) -> float:
    """The mean of ‖f(x_t) − f(x_r)‖ over one tick, in which nothing moves."""
    student, objective = student_of(flow), Consistency(times=TIMES, interval=interval, c=0.0)
    teacher = FlowMap(MEAN, STD, flow.process).teacher()
    run = distill(teacher, student, objective, data(4096), steps=1, batch=32_768, optim=SGD(lr=0.0), seed=seed)
    return run.tick().losses["consistency"]


@every_process
def test_the_consistency_map_is_constant_along_the_flow(process: Process) -> None:
    flow = FlowMap(MEAN, STD, process)
    noise = Rng(0).normal(8, 2, dtype=F64)
    times = process.at_ratio(torch.linspace(20**0.25, 0.05**0.25, 401, dtype=F64) ** 4)
    ends = [flow.denoise(state.x, tensor(state.t).expand(8)).detach() for state in heun(flow.teacher(), noise, times)]
    for end in ends[::50]:
        close(end, ends[-1], 1e-4)


@every_process
def test_loss_of_the_consistency_map_is_the_error_of_one_heun_step(process: Process) -> None:
    """With exact neighbours it would be zero; a Heun step's local error is of third order in the interval."""
    flow = FlowMap(MEAN, STD, process)
    coarse, fine = (consistency_loss(flow, interval) for interval in (1 / 512, 1 / 1024))
    assert coarse / fine == pytest.approx(8, rel=0.1)
    assert fine < 1e-7


@pytest.mark.parametrize(("mean", "std"), [(0.1, 0.0), (0.0, 0.1), (0.0, -0.1)], ids=str)
def test_other_maps_lose_much_more(mean: float, std: float) -> None:
    """A map that is off by a tenth changes along the flow, by an amount of first order in the interval."""
    right, wrong = FlowMap(MEAN, STD), FlowMap(MEAN + mean, STD + std)
    losses = [consistency_loss(wrong, interval) for interval in (1 / 512, 1 / 1024)]
    assert losses[1] > 3000 * consistency_loss(right, 1 / 1024)
    assert losses[0] / losses[1] == pytest.approx(2, rel=0.1)


class Pair(Karras):
    """Level 2 at every quantile above 0 and level 1 there: with an interval of 1 each pair is (2, 1)."""

    def at(self, u: Tensor, process: Process, progress: float = 0.0) -> Tensor:
        return torch.where(u > 0, 2.0, 1.0).double()


def test_consistency_training_takes_the_noise_of_x_t() -> None:
    """Without a teacher, x at 0 gives x_t = 2ε and x_r = ε: f differs by s·|ε|·|2/√(s² + 2²) − 1/√(s² + 1)|.

    E|ε| = √(2/π); another noise at r would take the place of the difference by the root of a sum of squares.
    """
    n, objective = 40_000, Consistency(times=Pair(), interval=1.0, teacher=False, c=0.0)
    student, zero = student_of(FlowMap(tensor(0.0), tensor(0.5))), torch.zeros(1, 1, dtype=F64)
    run = distill(None, student, objective, zero, steps=1, batch=n)
    apart = 0.5 * (2 / 4.25**0.5 - 1 / 1.25**0.5)
    error = apart * ((1 - 2 / pi) / n) ** 0.5
    assert abs(run.tick().losses["consistency"] - apart * (2 / pi) ** 0.5) < 5 * error


def test_the_target_has_no_gradient() -> None:
    """With f of the right s but a wrong μ, f(x_t) lies below f(x_r) everywhere, so that the norm has the slope
    −∂f/∂μ = −(1 − s/√(s² + 2²)) at t alone; a gradient through the target would subtract the slope at r.
    """
    flow, teacher = FlowMap(tensor(0.3), tensor(0.5)), FlowMap(tensor(0.8), tensor(0.5)).teacher()
    objective = Consistency(times=Pair(), interval=1.0, c=0.0)
    moved = descended(objective, teacher, student_of(flow), tensor(0.8)[None], batch=64)
    close(moved["denoiser.mean"], tensor(-(1 - 0.5 / 4.25**0.5)))


@pytest.mark.parametrize("target", [EMA(decay=0.0), EMA(decay=0.5)], ids=["stop", "average"])
def test_consistency_distillation_finds_the_map(target: EMA) -> None:
    """From N(0, 1)'s map to the teacher's: f(x, 0) = x holds by form, and the ODE fixes the rest."""
    teacher, flow = FlowMap(MEAN, STD).teacher(), FlowMap(tensor(0.0, 0.0), tensor(1.0, 1.0))
    objective = Consistency(times=TIMES, interval=1 / 32, target=target)
    optim = Adam(lr=0.05, schedule=Cosine())
    distill(teacher, student_of(flow), objective, data(4096), steps=300, batch=128, optim=optim).finish()
    close(flow.mean.detach(), MEAN, 1e-3)
    close(flow.std.detach(), STD, 0.02)  # Heun's error at this interval, the same for every seed


# Regression onto the ends of the ODE


def pairs(n: int, process: Process) -> Dataset:
    """Noise and where the exact flow carries it."""
    noise = Rng("pairs").normal(n, 2, dtype=F64)
    return Dataset(noise=noise, x=student_of(FlowMap(MEAN, STD, process)).first(noise).detach())


@every_process
def test_regression_fits_the_map_of_the_ode(process: Process) -> None:
    flow = FlowMap(tensor(0.0, 0.0), tensor(1.0, 1.0), process)
    optim = Adam(lr=0.1, schedule=Cosine())
    run = distill(None, student_of(flow), Regression(), pairs(512, process), steps=250, batch=64, optim=optim)
    *_, last = run
    assert last.losses["regression"] < 1e-4
    close(flow.mean.detach(), MEAN, 1e-3)
    close(flow.std.detach(), STD, 1e-3)


def test_regression_loses_nothing_on_the_map_itself() -> None:
    flow = FlowMap(MEAN, STD)
    run = distill(None, student_of(flow), Regression(), pairs(64, flow.process), steps=1, batch=64)
    assert run.tick().losses["regression"] < 1e-15


def test_pairs_of_a_fine_sampler_are_those_of_the_map() -> None:
    flow = FlowMap(MEAN, STD)
    noise = Rng("pairs").normal(16, 2, dtype=F64)
    ends = sample(heun(flow.teacher(), noise, TIMES.grid(200, flow.process)))
    close(ends, student_of(flow).first(noise).detach(), 2e-4)


def test_gradient_of_regression_near_a_square() -> None:
    """At large c the distance is ‖d‖²/(2c√D). A map whose μ is off by 1 is off by its slope ∂G/∂μ everywhere, so that
    the gradient by μ is that slope squared over c√D.
    """
    c, flow = 1e5, FlowMap(MEAN + 1.0, STD)
    slope = 1 - STD / (STD**2 + 20.0**2).sqrt()
    moved = descended(Regression(c=c), None, student_of(flow), pairs(64, flow.process), batch=64)
    close(moved["denoiser.mean"] * c * 2**0.5, slope**2, 1e-6)
