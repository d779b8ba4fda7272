"""Score distillation along a student's path: its noise, the score that a critic learns there, and its special cases.

A step's end x_s = α_s·x + σ_s·ε, where ε depends on x; x_t = a·x_s + b·ξ, a = α_t/α_s, b = √(σ_t² − a²σ_s²).
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from limbeck import (
    DMD,
    EDM,
    TDM,
    VP,
    Critic,
    Draw,
    Fake,
    Fresh,
    GaussianMixture,
    Huber,
    Noised,
    Onward,
    PerSample,
    Phased,
    PhasedDMD,
    Process,
    RandomEta,
    Rng,
    ScoreDistillation,
    Segment,
    Trajectory,
    WholePath,
    like,
    onward,
)
from limbeck.diffusion.samplers import euler, sample
from tests.oracles.exact import F64, assert_mean, close, descended, every_process, mixture

LAST = 0.6


def end_of_step(x_s: Tensor, process: Process, s: float, t: float) -> Draw:
    """A step that ended in x_s: half of that is x, the rest ε, so that ε depends on x in every way there is."""
    ends = torch.tensor([s, t], dtype=F64)
    alpha, sigma = process.alpha(ends[0]), process.sigma(ends[0])
    x = x_s / (2 * alpha)
    return Draw(x, None, (x_s - alpha * x) / sigma, (s, t))


def taken_on(draw: Draw, fresh: Tensor, t: Tensor, process: Process) -> Noised:
    """x_t by fresh noise."""
    assert draw.segment is not None and draw.noise is not None
    eps = onward(process, draw.noise, fresh, torch.full_like(t, draw.segment[0]), t)
    return Noised(draw.x, process.add_noise(draw.x, eps, t), t, eps, None, process, None, draw)


@every_process
def test_noise_goes_on(process: Process) -> None:
    s, t = (process.at_ratio(torch.full((5,), ratio, dtype=F64)) for ratio in (0.5, 2.0))
    x, eps, fresh = (Rng(name).normal(5, 3, dtype=F64) for name in (0, 1, 2))
    a = process.alpha(t) / process.alpha(s)
    b = (process.sigma(t) ** 2 - (a * process.sigma(s)) ** 2).sqrt()
    x_t = process.add_noise(x, onward(process, eps, fresh, s, t), t)
    close(x_t, like(a, x) * process.add_noise(x, eps, s) + like(b, x) * fresh, 1e-12)
    assert torch.equal(onward(process, eps, fresh, s, s), eps)
    close(onward(process, eps, fresh, process.at_ratio(torch.full_like(s, 1e-9)), t), fresh, 1e-6)


def optimum(
    critic: str, ratio: tuple[float, float], process: Process, points: Tensor
) -> tuple[Tensor, GaussianMixture, Tensor]:
    """What a critic's regression gives at x_t = points, by quadrature over x_s: E[w·target | x_t]/E[w | x_t].

    x_s has two modes; x0 whose score is wanted has the same distribution without noise, at the levels above s.
    """
    s, t = (process.at_ratio(torch.tensor([r], dtype=F64)) for r in ratio)
    state = GaussianMixture(means=torch.tensor([[-1.0], [0.7]], dtype=F64), std=0.4, process=EDM())
    grid = torch.linspace(-9, 9, 4001, dtype=F64)[:, None]
    density = state.log_prob(grid, torch.full((len(grid),), 1e-9, dtype=F64)).exp()
    a = process.alpha(t) / process.alpha(s)
    b = (process.sigma(t) ** 2 - (a * process.sigma(s)) ** 2).sqrt()
    fresh = (points[:, None] - a * grid[None]) / b  # [P, G, 1]
    weights = density * (-(fresh[..., 0] ** 2) / 2).exp()
    draw = end_of_step(grid.repeat(len(points), 1), process, s.item(), 99.0)
    seen = taken_on(draw, fresh.reshape(-1, 1), t.expand(fresh[..., 0].numel()), process)
    target, w = Onward(critic=critic).target(seen)  # type: ignore[arg-type]
    weights = weights * w.reshape(weights.shape)
    x0 = (weights * target.reshape(weights.shape)).sum(1) / weights.sum(1)
    return x0[:, None], state, (b / a).expand(len(points))


def scores(critic: str, ratio: tuple[float, float], process: Process) -> tuple[Tensor, Tensor]:
    """(by the critic's optimum, exact) ∇ln q_t at some points: x_t = a·(x_s + (b/a)·ξ) has the score of x_s over a."""
    points = torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    s, t = (process.at_ratio(torch.full((9,), r, dtype=F64)) for r in ratio)
    a = like(process.alpha(t) / process.alpha(s), points)
    x0, state, level = optimum(critic, ratio, process, points)
    exact = (state.denoise(points / a, level) - points / a) / like(level, points) ** 2 / a
    return process.convert(x0, points, t, "x0", "score"), exact


@every_process
@pytest.mark.parametrize("ratio", [(0.5, 0.7), (0.5, 3.0), (2.0, 5.0)])
def test_critic_of_a_path_learns_its_score(process: Process, ratio: tuple[float, float]) -> None:
    """To 1e-6; what takes the end of the step for x with noise is off, the more the closer t is to s."""
    found, exact = scores("state", ratio, process)
    close(found, exact, 1e-6)
    naive, _ = scores("naive", ratio, process)
    assert (naive - exact).norm() > (0.15 if ratio[1] < 1 else 0.03) * exact.norm()


@every_process
def test_importance_makes_noise_new(process: Process) -> None:
    """Weighted so, x_t is x and as much fresh noise, whatever ε was: E[x | x_t] of x alone, for D = 1."""
    ratio, points = (0.5, 0.9), torch.linspace(-1, 1, 5, dtype=F64)[:, None]
    x0, state, _ = optimum("importance", ratio, process, points)
    alpha_s = process.alpha(process.at_ratio(torch.tensor([0.5], dtype=F64)))
    half = GaussianMixture(means=state.means / (2 * alpha_s), std=0.4 / (2 * alpha_s.item()), process=process)
    close(x0, half.denoise(points, process.at_ratio(torch.full((5,), 0.9, dtype=F64))), 1e-6)


def test_error_of_the_target_is_bounded() -> None:
    """E[w·target²] = σ_t²·(s/t)⁴ around x_s = 0: the weight (b/σ_t)² undoes what 1/b does as t comes close to s."""
    fresh, process = Rng(3).normal(20_000, 1, dtype=F64), EDM()
    draw = end_of_step(torch.zeros(20_000, 1, dtype=F64), process, 1.0, 99.0)
    for level in (1.001, 1.5, 3.0):
        t = torch.full((20_000,), level, dtype=F64)
        target, weight = Onward().target(taken_on(draw, fresh, t, process))
        assert_mean(weight[:, None] * target**2 / level**2, torch.tensor([level**-4.0], dtype=F64), share=0.2)


def walker(process: Process, only: tuple[int, ...] = ()) -> tuple[GaussianMixture, Trajectory]:
    teacher = mixture(1, process=process, network=lambda: mixture(3, process=process).requires_grad_())
    return teacher, Trajectory(mixture(2, process=process).requires_grad_(), ratios=(3.0, LAST), shape=(2,), only=only)


@every_process
def test_the_last_step_is_dmd(process: Process) -> None:
    """There s is clean, so all noise is new and the critic learns x0: to the bit. Of the first that is not so."""
    objective, times = TDM(shape=(PerSample(),)), Segment()
    fresh = replace(objective, noise=Fresh(), fake=Fake(critic=Critic(times=times)))
    assert isinstance(fresh, ScoreDistillation) and fresh.shape == DMD().shape and fresh.weight == DMD().weight
    for role in ("student", "critic"):
        for step in (0, 1):
            ours, theirs = (
                descended(one, *walker(process, only=(step,)), batch=64, role=role) for one in (objective, fresh)
            )
            assert all(torch.equal(ours[name], theirs[name]) for name in ours) == (step == 1)


@every_process
def test_levels_stay_in_the_segment(process: Process) -> None:
    s, t = (process.at_ratio(torch.tensor(r, dtype=F64)).item() for r in (0.5, 2.0))
    inside = Segment().within((s, t), 1000, process, Rng(0))
    assert s <= inside.min() < s + 0.01 * (t - s) and t - 0.01 * (t - s) < inside.max() <= t + 1e-12
    clock = process.fraction(torch.tensor([s, t], dtype=F64))
    assert_mean(process.fraction(inside)[:, None], clock.mean()[None], share=0.1)
    beyond = process.ratio(Segment(beyond=8.0).within((s, t), 1000, process, Rng(0)))
    assert beyond.min() >= 0.5 - 1e-9 and 6 < beyond.max() <= 8 + 1e-9
    least = Segment(hi=0.0, floor=0.1).within((0.0, t), 3, process, Rng(0))
    close(process.ratio(least), torch.full((3,), 0.1, dtype=F64), 1e-9)


@every_process
def test_a_trajectory_is_ddim(process: Process) -> None:
    """And a draw of its first step ends, by its noise, where its second begins."""
    _, student = walker(process, only=(0,))
    noise = Rng(5).normal(7, 2, dtype=F64)
    close(student.generate(noise, None, Rng(0)), sample(euler(student.denoiser, noise, student.times)))
    still = RandomEta(student.denoiser, ratios=student.ratios, shape=(2,), eta=0.0)
    close(student.generate(noise, None, Rng(0)), still.generate(noise, None, Rng(0)))
    draw, rng = student.draw(7, None, Rng(6)), Rng(6)
    assert draw.noise is not None and draw.segment is not None
    s = torch.full((7,), draw.segment[0], dtype=F64)
    close(process.add_noise(draw.x, draw.noise, s), next(iter(student.states(student._noise(7, rng)))).x)


@every_process
def test_a_whole_path_learns_through_every_step(process: Process) -> None:
    """Its draws are its samples, and their gradients the central differences of those, parameter by parameter."""
    student = WholePath(mixture(2, process=process).requires_grad_(), ratios=(3.0, 1.0, LAST), shape=(2,))
    draw = student.draw(7, None, Rng(6))
    assert draw.noise is not None and draw.segment == (0.0, student.times[0].item())

    def value() -> Tensor:
        return (student.generate(draw.noise, None, Rng(0)) * weight).sum()

    weight = Rng(7).normal(7, 2, dtype=F64)
    close((draw.x * weight).sum().detach(), value())
    (draw.x * weight).sum().backward()
    means = student.denoiser.get_parameter("means")
    assert means.grad is not None
    for place in range(means.numel()):
        ends = []
        for step in (1e-5, -1e-5):
            means.data.flatten()[place] += step
            ends.append(value())
            means.data.flatten()[place] -= step
        close(means.grad.flatten()[place], (ends[0] - ends[1]) / 2e-5, 1e-6)


def test_huber_bounds_each_number() -> None:
    g = torch.tensor([[3e-6, -2.0], [0.5, 1e4]], dtype=F64, requires_grad=True)
    distance = ((g**2 + 1e-6).sqrt() - 1e-3).sum()
    close(Huber(c=1e-3).bounded(g), torch.autograd.grad(distance, g)[0], 1e-12)


def test_experts_share_the_levels_out() -> None:
    """Each answers from its level down to the next one's, on rows of any order; one alone is itself."""
    process, ratios = VP(), (3.0, 1.0, 0.2)
    experts = [mixture(k, process=process) for k in range(3)]
    r = torch.tensor([0.2, 5.0, 1.0, 0.1, 3.0, 0.99, 1.01], dtype=F64)
    x_t, t = Rng(1).normal(7, 2, dtype=F64), process.at_ratio(r)
    answers = [expert.denoise(x_t, t) for expert in experts]
    expected = torch.stack([answers[k][i] for i, k in enumerate((2, 0, 1, 2, 0, 1, 0))])
    close(Phased(experts, ratios=ratios).denoise(x_t, t), expected)
    close(Phased(experts[:1], ratios=(3.0,)).denoise(x_t, t), answers[0])


def test_a_phase_trains_its_expert_alone() -> None:
    """Where its step begins is up to the experts before it, which stay as they are."""
    process = EDM()
    experts = [mixture(2, process=process), mixture(4, process=process).requires_grad_()]
    student = Trajectory(Phased(experts, ratios=(3.0, LAST)), ratios=(3.0, LAST), shape=(2,), only=(1,))
    teacher, _ = walker(process)
    moved = descended(PhasedDMD(critic_steps=1), teacher, student, batch=64)
    assert moved and all(name.startswith("denoiser.experts.1.") and value.norm() > 0 for name, value in moved.items())
    draw = student.draw(64, None, Rng(0))
    assert draw.segment == (0.0, LAST) and draw.noise is not None
    first = next(iter(euler(experts[0], student._noise(64, Rng(0)), student.times)))
    close(process.add_noise(draw.x.detach(), draw.noise, torch.full((64,), LAST, dtype=F64)), first.x)
