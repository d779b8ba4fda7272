"""Noise → data. A sampler is a generator of states: watch it, stop it, or take the last one with `sample`."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.process import Process, like
from limbeck.errors import in_range
from limbeck.rng import Rng
from limbeck.tree import Tree


@dataclass(frozen=True)
class State:
    """Where a sampler stands: x [B, …] at noise level t, the prediction that led there, and the passes so far."""

    x: Tensor
    t: float
    x0: Tensor | None
    nfe: int


def start(noise: Tensor, times: Tensor, process: Process) -> Tensor:
    """The state at the first noise level, x = σ·ε, or what the process begins with instead; shape of ``noise``."""
    return like(process.begin(times[:1]), noise) * noise


def euler(denoiser: Denoiser, noise: Tensor, times: Tensor, cond: Tree = None) -> Iterator[State]:
    """DDIM, which is Euler's method on dx̄/dσ̄ = ε with x̄ = x/α, σ̄ = σ/α: x_s = α_s·x0 + σ_s·ε; first order.

    Args:
        denoiser: the teacher, guided or not.
        noise: standard normal, [B, …].
        times: noise levels from the first down to 0, float64 [n + 1].
        cond: the condition, or None.

    Source: Song et al. 2021, arXiv 2010.02502, eq. 12 with η = 0.

    >>> from limbeck.diffusion import Karras
    >>> from limbeck.teachers import GaussianMixture
    >>> teacher = GaussianMixture(means=torch.zeros(1, 1), std=1.0)
    >>> times = Karras().grid(50, teacher.process)
    >>> sample(euler(teacher, torch.ones(1, 1), times)).shape
    torch.Size([1, 1])
    """
    process, x = denoiser.process, start(noise, times, denoiser.process)
    for i, (t, s) in enumerate(pairwise(times)):
        levels = t.expand(len(x))
        x0 = denoiser.denoise(x, levels, cond)
        x = x0 if s == 0 else process.add_noise(x0, process.convert(x0, x, levels, "x0", "eps"), s.expand(len(x)))
        yield State(x, float(s), x0, i + 1)


def heun(denoiser: Denoiser, noise: Tensor, times: Tensor, cond: Tree = None) -> Iterator[State]:
    """Heun's method on dx/dt = flow: a DDIM step, then the mean of both ends' slopes; second order, 2n − 1 passes.

    Arguments as for `euler`. Source: EDM, arXiv 2206.00364, algorithm 1.

    >>> from limbeck.diffusion import Karras
    >>> from limbeck.teachers import GaussianMixture
    >>> teacher = GaussianMixture(means=torch.zeros(1, 1), std=1.0)
    >>> [state.nfe for state in heun(teacher, torch.ones(1, 1), Karras().grid(3, teacher.process))]
    [2, 4, 5]
    """
    x = start(noise, times, denoiser.process)
    for i, (t, s) in enumerate(pairwise(times)):
        if s == 0:
            x0 = x = denoiser.denoise(x, t.expand(len(x)), cond)
        else:
            x, x0 = _heun(denoiser, x, t.expand(len(x)), s.expand(len(x)), cond)
        yield State(x, float(s), x0, 2 * i + (1 if s == 0 else 2))


def heun_step(denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, cond: Tree = None) -> Tensor:
    """One step of Heun's method from noise levels t [B] to s [B], both above 0; shape of x."""
    return _heun(denoiser, x, t, s, cond)[0]


def _heun(denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, cond: Tree) -> tuple[Tensor, Tensor]:
    """(x at s, the last prediction of x0)."""
    process = denoiser.process
    x0 = denoiser.denoise(x, t, cond)
    slope = process.convert(x0, x, t, "x0", "flow")
    ahead = process.add_noise(x0, process.convert(x0, x, t, "x0", "eps"), s)
    x0 = denoiser.denoise(ahead, s, cond)
    slope = slope + process.convert(x0, ahead, s, "x0", "flow")
    return x + like((s - t) / 2, x) * slope, x0


def dpm_solver(denoiser: Denoiser, noise: Tensor, times: Tensor, cond: Tree = None) -> Iterator[State]:
    """DPM-Solver++(2M): x_s = (σ_s/σ_t)·x + α_s·(1 − e⁻ʰ)·x̂0 with h = λ_s − λ_t and λ = ln(α/σ); second order.

    x̂0 = x0 + h/(2h')·(x0 − x0') goes on along the line through the last two predictions, h' and x0' being those of
    the step before. So there is one pass a step. The first step and one to clean data, where λ_s = ∞, are those of
    `euler`, and so is the one after a start from pure noise, where h' = ∞.

    Arguments as for `euler`; the levels must fall. Source: Lu et al. 2022, arXiv 2211.01095, algorithm 2.

    >>> from limbeck.teachers import GaussianMixture
    >>> teacher = GaussianMixture(means=torch.zeros(1, 1), std=1.0)
    >>> times = torch.tensor([4.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    >>> [round(state.x.item(), 4) for state in dpm_solver(teacher, torch.ones(1, 1), times)]  # 36/17, 112/85, 56/85
    [2.1176, 1.3176, 0.6588]
    """
    process, x, before = denoiser.process, start(noise, times, denoiser.process), None
    h = -process.ratio(times).log().diff()  # ∞ where a step leaves pure noise or arrives at clean data
    for i, (t, s) in enumerate(pairwise(times)):
        x0 = denoiser.denoise(x, t.expand(len(x)), cond)
        ahead = x0 if before is None or s == 0 else x0 + like(h[i] / (2 * h[i - 1]), x) * (x0 - before)
        x = like(process.sigma(s) / process.sigma(t), x) * x - like(process.alpha(s) * h[i].neg().expm1(), x) * ahead
        before = x0
        yield State(x, float(s), x0, i + 1)


def ancestral(
    denoiser: Denoiser, noise: Tensor, times: Tensor, cond: Tree = None, *, eta: float = 1.0, rng: Rng | None = None
) -> Iterator[State]:
    """DDPM's sampler, η of the noise being fresh: x_s = α_s·x0 + √(σ_s² − σ_up²)·ε + σ_up·z; one pass a step.

    σ_up = η·σ_s·√(1 − (σ̄_s/σ̄_t)²) with σ̄ = σ/α. For η = 1 that is the spread of q(x_s | x_t, x0); η = 0 is `euler`.

    Args, beside those of `euler`:
        eta: η, from 0 to 1.
        rng: draws the fresh noise z.

    Raises:
        BadSetting: before the first state, if eta is out of its range.

    Source: Ho et al. 2020, arXiv 2006.11239, eq. 6 and 7; for any η Song et al. 2021, arXiv 2010.02502, eq. 12 and 16.

    >>> from limbeck.teachers import GaussianMixture
    >>> teacher = GaussianMixture(means=torch.ones(1, 1), std=0.0)
    >>> sample(ancestral(teacher, torch.ones(1, 1), torch.tensor([80.0, 2.0, 0.0], dtype=torch.float64)))
    tensor([[1.]])
    """
    in_range("eta", eta, 0, 1)
    process, x, rng = denoiser.process, start(noise, times, denoiser.process), rng or Rng(0)
    for i, (t, s) in enumerate(pairwise(times)):
        levels = t.expand(len(x))
        x0 = denoiser.denoise(x, levels, cond)
        if s == 0:
            x = x0
        else:
            left = process.ratio(s) / process.ratio(t)
            z = rng.normal(len(x0), *x0.shape[1:], dtype=x0.dtype).to(x0.device)
            eps = process.convert(x0, x, levels, "x0", "eps")
            eps = like((1 - eta**2 + (eta * left) ** 2).sqrt(), x0) * eps + like(eta * (1 - left**2).sqrt(), x0) * z
            x = process.add_noise(x0, eps, s.expand(len(x)))
        yield State(x, float(s), x0, i + 1)


def few_step(
    denoiser: Denoiser, noise: Tensor, times: Tensor, cond: Tree = None, *, rng: Rng | None = None
) -> Iterator[State]:
    """A few-step student: predict x0, add fresh noise at the next level, repeat; one pass a step.

    Arguments as for `euler`; ``rng`` draws the fresh noise and is not needed for one step.
    Source: consistency models, arXiv 2303.01469, algorithm 1; DMD2, arXiv 2405.14867, sec. 4.4.

    >>> from limbeck.teachers import GaussianMixture
    >>> teacher = GaussianMixture(means=torch.ones(1, 1), std=0.0)
    >>> sample(few_step(teacher, torch.ones(1, 1), torch.tensor([80.0, 0.0], dtype=torch.float64)))
    tensor([[1.]])
    """
    process, x = denoiser.process, start(noise, times, denoiser.process)
    for i, (t, s) in enumerate(pairwise(times)):
        x0 = x = denoiser.denoise(x, t.expand(len(x)), cond)
        if s > 0:
            rng = rng or Rng(0)
            x = process.add_noise(x0, rng.normal(len(x0), *x0.shape[1:], dtype=x0.dtype), s.expand(len(x0)))
        yield State(x, float(s), x0, i + 1)


def sample(states: Iterable[State]) -> Tensor:
    """The x of a sampler's last state, computed without gradients."""
    with torch.no_grad():
        return deque(states, maxlen=1).pop().x
