"""Samplers: order of convergence on ODEs with closed solutions, and the passes they spend."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from limbeck import (
    EDM,
    Denoiser,
    FewStep,
    GaussianMixture,
    Karras,
    OneStep,
    Process,
    RectifiedFlow,
    Rng,
    State,
    Uniform,
    euler,
    few_step,
    heun,
    heun_step,
    like,
    sample,
)
from tests.oracles.exact import (
    F64,
    PROCESSES,
    FlowMap,
    assert_mean,
    close,
    every_process,
    mixture,
    seeds,
    tensor,
)

Sampler = Callable[[Denoiser, Tensor, Tensor], Iterator[State]]
samplers = pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2)], ids=["euler", "heun"])


def grid(process: Process, n: int, top: float = 20.0, end: float = 0.05) -> Tensor:
    """n + 1 levels, smooth in the index, so that errors have a clean power of n; it stops short of 0."""
    return process.at_ratio((top ** (1 / 4) + torch.linspace(0, 1, n + 1, dtype=F64) * (end**0.25 - top**0.25)) ** 4)


def mass_below(teacher: GaussianMixture, x: Tensor, t: Tensor) -> Tensor:
    """P_t(X ≤ x) of a mixture on the line, which its ODE keeps: in one dimension the flow is the quantile map."""
    alpha, sigma = teacher.process.alpha(t), teacher.process.sigma(t)
    std = (alpha**2 * teacher.factor[:, 0, 0] ** 2 + sigma**2).sqrt()
    return (torch.special.ndtr((x - alpha * teacher.means[:, 0]) / std) * teacher.logits.exp()).sum(1)


def error_on_mixture(sampler: Sampler, process: Process, seed: int, n: int) -> float:
    teacher, times = mixture(seed, k=3, d=1, process=process), grid(process, n, top=5.0, end=0.2)
    noise = torch.linspace(-2, 2, 21, dtype=F64)[:, None]
    begin = like(process.sigma(times[:1]), noise) * noise
    end = sample(sampler(teacher, noise, times))
    return (mass_below(teacher, end, times[-1]) - mass_below(teacher, begin, times[0])).abs().max().item()


@every_process
@pytest.mark.parametrize("seed", range(2))
@samplers
def test_order_on_a_mixture(sampler: Sampler, order: int, process: Process, seed: int) -> None:
    coarse, fine = (error_on_mixture(sampler, process, seed, n) for n in (80, 160))
    assert coarse / fine == pytest.approx(2**order, rel=0.05)


def flow_of_gaussian(process: Process, x: Tensor, t: Tensor, s: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """x_s on the trajectory through x_t: (x_t − αμ)/√(α²s² + σ²) stays."""
    spread = [(process.alpha(u) ** 2 * std**2 + process.sigma(u) ** 2).sqrt() for u in (t, s)]
    return process.alpha(s) * mean + spread[1] / spread[0] * (x - process.alpha(t) * mean)


@every_process
@samplers
def test_order_on_a_gaussian(sampler: Sampler, order: int, process: Process) -> None:
    mean, std, noise = tensor(0.8, -0.3), tensor(0.5, 1.4), Rng(0).normal(8, 2, dtype=F64)
    teacher = FlowMap(mean, std, process).teacher()
    errors = []
    for n in (80, 160):
        times = grid(process, n)
        begin = process.sigma(times[0]) * noise
        exact = flow_of_gaussian(process, begin, times[0], times[-1], mean, std)
        errors.append((sample(sampler(teacher, noise, times)) - exact).norm().item())
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.05)


@every_process
@seeds
def test_one_heun_step_has_a_local_error_of_third_order(process: Process, seed: int) -> None:
    teacher, u = mixture(seed, k=3, d=1, process=process), torch.full((21,), 0.45, dtype=F64)
    t = Karras().at(u, process)
    x = process.sigma(t)[:, None] * torch.linspace(-2, 2, 21, dtype=F64)[:, None]
    errors = []
    for h in (2e-3, 1e-3):
        s = Karras().at(u - h, process)
        end = heun_step(teacher, x, t, s)
        errors.append((mass_below(teacher, end, s[0]) - mass_below(teacher, x, t[0])).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.05)


@seeds
@pytest.mark.parametrize("process", PROCESSES[:3], ids=lambda p: type(p).__name__)
def test_ddim_takes_the_same_path_in_every_process(process: Process, seed: int) -> None:
    """It is Euler's method in x/α and σ/α, so that the process is a matter of names."""
    noise, other = Rng(seed).normal(6, 2, dtype=F64), EDM()
    ends = []
    for p in (process, other):
        times = grid(p, 12)
        x = sample(euler(mixture(seed, process=p), noise, times))
        ends.append(x / p.alpha(times[-1]))
    close(ends[0], ends[1])


@every_process
@pytest.mark.parametrize("sampler", [euler, heun], ids=["euler", "heun"])
def test_a_last_step_to_zero_returns_the_prediction(sampler: Sampler, process: Process) -> None:
    teacher, noise = mixture(0, process=process), Rng(0).normal(6, 2, dtype=F64)
    *_, before, last = sampler(teacher, noise, Karras(sigma_max=20.0).grid(9, process))
    assert last.t == 0 and torch.equal(last.x, teacher.denoise(before.x, tensor(before.t).expand(6)))


class Counted(Denoiser):
    """Counts its passes."""

    def __init__(self, inner: Denoiser):
        super().__init__()
        self.inner, self.process, self.passes = inner, inner.process, 0

    def denoise(self, x_t: Tensor, t: Tensor, cond: object = None) -> Tensor:
        self.passes += 1
        return self.inner.denoise(x_t, t, cond)


@pytest.mark.parametrize("n", [1, 2, 18])
@pytest.mark.parametrize(
    ("sampler", "cost"), [(euler, (1, 0)), (heun, (2, -1)), (few_step, (1, 0))], ids=["euler", "heun", "few"]
)
def test_passes_are_what_the_state_says(sampler: Sampler, cost: tuple[int, int], n: int) -> None:
    teacher = Counted(mixture(0))
    times = torch.cat([grid(EDM(), n)[:n], torch.zeros(1, dtype=F64)])
    for state in sampler(teacher, torch.zeros(2, 2, dtype=F64), times):
        assert state.nfe == teacher.passes
    assert teacher.passes == cost[0] * n + cost[1]


def test_35_passes_are_18_levels() -> None:
    *_, last = heun(mixture(0), torch.zeros(1, 2, dtype=F64), Karras().grid(18, EDM()))
    assert last.nfe == 35


@every_process
def test_one_step_of_the_consistency_map_is_the_whole_ode(process: Process) -> None:
    flow = FlowMap(tensor(0.8, -0.3), tensor(0.5, 1.4), process)
    student, noise = OneStep(flow, shape=(2,), ratio=20.0), Rng(0).normal(8, 2, dtype=F64)
    fine = torch.cat([grid(process, 400, end=1e-3), torch.zeros(1, dtype=F64)])
    # The last pass jumps from σ = 10⁻³ to E[x0 | x_t], which is off by σ²/2s² of the distance to the mean.
    close(student.first(noise).detach(), sample(heun(flow.teacher(), noise, fine)), 1e-4)


@every_process
def test_steps_of_the_consistency_map_keep_the_distribution(process: Process) -> None:
    """x0 ~ p is noised to p_t exactly, and the map carries p_t back to p: moments stay, however many steps."""
    flow = FlowMap(tensor(0.8), tensor(0.5), process)
    student = FewStep(flow, ratios=(1e3, 2.0, 0.7), shape=(1,))
    x = student.sample(20_000, None, Rng(3))
    assert_mean(x, tensor(0.8))
    assert_mean((x - 0.8) ** 2, tensor(0.25))


@every_process
def test_a_draw_trains_its_last_step_only(process: Process) -> None:
    """∂f/∂μ = 1 − sα/√(α²s² + σ²) whatever x_t is; a gradient through the rollout would add to it."""
    flow = FlowMap(tensor(0.8), tensor(0.5), process).requires_grad_()
    student, seen = FewStep(flow, ratios=(1e4, 2.0, 0.5), shape=(1,)), set()
    for seed in range(24):
        draw = student.draw(4000, None, Rng(seed))
        assert draw.segment is not None
        t = tensor(draw.segment[1])
        alpha, sigma = process.alpha(t), process.sigma(t)
        (slope,) = torch.autograd.grad(draw.x.mean(), [flow.mean])
        close(slope, 1 - 0.5 * alpha / (alpha**2 * 0.25 + sigma**2).sqrt())
        assert_mean(draw.x.detach(), tensor(0.8))  # backward simulation: each step starts from p_t
        assert_mean((draw.x.detach() - 0.8) ** 2, tensor(0.25))
        seen.add(draw.segment)
    assert len(seen) == 3


def test_uniform_levels_of_a_straight_flow_are_equal_steps() -> None:
    times = Uniform(lo=0.001, hi=1.0).grid(9, RectifiedFlow())[:-1]
    close(times.diff(), torch.full((8,), -0.999 / 8, dtype=F64))
