"""Quantile functions of noise levels against the distributions that they are named after."""

import math

import pytest
import torch
from scipy import stats

from limbeck import EDM, VP, Annealed, Karras, LogNormal, Process, RectifiedFlow, Rng, Times, Uniform
from limbeck.errors import BadSetting
from tests.oracles.exact import F64, assert_mean, close, every_process, seeds, tensor

U = torch.linspace(0, 1, 201, dtype=F64)
N = 20_000
TIMES = (Uniform(), LogNormal(), Karras(), Karras(lo=0.2, hi=0.8, rho=3.0), Annealed(first=Uniform(), last=Uniform()))
every_times = pytest.mark.parametrize("times", TIMES, ids=lambda times: type(times).__name__)


def cdf(times: Times, ratio: torch.Tensor) -> torch.Tensor:
    """P(level ≤ ratio), written down independently of the quantile functions."""
    if isinstance(times, LogNormal):
        return torch.special.ndtr((ratio.log() - times.mean) / times.std)
    assert isinstance(times, Karras)
    root = [sigma ** (1 / times.rho) for sigma in (times.sigma_min, times.sigma_max)]
    index = (ratio ** (1 / times.rho) - root[0]) / (root[1] - root[0])
    return (index - times.lo) / (times.hi - times.lo)


@every_process
@pytest.mark.parametrize("times", TIMES[1:4], ids=repr)
def test_quantiles_invert_the_distribution(process: Process, times: Times) -> None:
    t = times.at(U, process)
    inside = (t > process.t_min * 1.001) & (t < process.t_max * 0.999)  # a log-normal is kept inside the range
    assert inside.sum() > 150
    close(cdf(times, process.ratio(t))[inside], U[inside], 1e-11)


@every_process
@every_times
def test_levels_stay_inside_the_process(process: Process, times: Times) -> None:
    t = times.at(U, process)
    assert t.dtype == F64 and t.isfinite().all()
    assert (t.diff() >= 0).all() and t.min() > 0 and t.max() <= process.t_max + 1e-12


@seeds
@every_process
def test_sampled_levels_follow_the_distribution(process: Process, seed: int) -> None:
    """Kolmogorov-Smirnov; √n·D is beyond 2.7 once in a million."""
    for times in (LogNormal(mean=0.3, std=0.5), Karras()):
        u = cdf(times, process.ratio(times.sample(N, process, Rng(seed))))
        assert stats.kstest(u.numpy(), "uniform").statistic < 2.7 / N**0.5


@seeds
def test_moments_of_the_lognormal(seed: int) -> None:
    log = LogNormal(mean=-0.4, std=0.7).sample(N, EDM(), Rng(seed)).log()[:, None]
    assert_mean(log, tensor(-0.4))
    assert_mean((log + 0.4) ** 2, tensor(0.49))


@every_process
def test_uniform_is_uniform_on_the_clock(process: Process) -> None:
    times = Uniform(lo=0.1, hi=0.7)
    close(times.at(U, process), process.at_fraction(0.1 + 0.6 * U))
    assert stats.kstest(Uniform().sample(N, VP(), Rng(0)).numpy(), "uniform", args=(0.02, 0.96)).pvalue > 1e-6


def test_karras_is_the_published_grid() -> None:
    """EDM's table 1: σ_i = (σ_max^(1/ρ) + i/(n − 1)·(σ_min^(1/ρ) − σ_max^(1/ρ)))^ρ, then 0."""
    n, a, b = 18, 80 ** (1 / 7), 0.002 ** (1 / 7)
    expected = [(a + i / (n - 1) * (b - a)) ** 7 for i in range(n)]
    close(Karras().grid(n, EDM()), tensor(*expected, 0.0))


@every_process
@every_times
@pytest.mark.parametrize("n", [2, 7, 40])
def test_grids_go_down_to_zero(process: Process, times: Times, n: int) -> None:
    grid = times.grid(n, process)
    assert grid.shape == (n + 1,) and grid[-1] == 0 and (grid.diff() < 0).all()
    close(grid[[0, n - 1]], times.at(tensor(1.0, 0.0), process))


@pytest.mark.parametrize(
    ("first", "last", "middle"),
    [
        (Uniform(lo=0.5, hi=0.98), Uniform(lo=0.02, hi=0.5), Uniform(lo=0.38, hi=0.86)),
        (LogNormal(mean=1.0, std=1.0), LogNormal(mean=-1.0, std=0.2), LogNormal(mean=0.5, std=0.8)),
        (Karras(lo=0.2, hi=1.0), Karras(lo=0.0, hi=0.6), Karras(lo=0.15, hi=0.9)),
    ],
    ids=["uniform", "lognormal", "karras"],
)
def test_annealed_moves_every_setting(first: Times, last: Times, middle: Times) -> None:
    times, process = Annealed(first=first, last=last, until=0.8), RectifiedFlow()
    for progress, now in ((0.0, first), (0.2, middle), (0.8, last), (1.0, last)):
        close(times.at(U, process, progress), now.at(U, process))


def test_annealed_refuses_two_kinds() -> None:
    with pytest.raises(BadSetting, match="one kind"):
        Annealed(first=Uniform(), last=Karras())


def test_the_median_of_a_lognormal_is_its_mean_of_logs() -> None:
    close(LogNormal(mean=-1.2, std=1.2).at(tensor(0.5), EDM()), tensor(math.exp(-1.2)))
