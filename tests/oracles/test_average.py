"""Moving averages over a run whose parameters move by a known amount."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from limbeck import EMA, SGD, Objective, Particles, Rng, distill
from limbeck.engine import Cast, Loss, Term, Tick
from tests.oracles.exact import F64, close


@dataclass(frozen=True, kw_only=True)
class Slope(Objective):
    """⟨g, x⟩: its gradient is the constant g."""

    every: int = 1

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        def loss(tick: Tick) -> Loss:
            return Loss(tick.draw().x.sum(1))

        return (Term("slope", "student", loss, every=self.every),)


def run_average(ema: EMA, steps: int, every: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """(start, end, average) of one particle that moves by −lr at each of its steps."""
    student = Particles(Rng(0).normal(1, 3, dtype=F64))
    start = student.x.detach().clone()
    run = distill(None, student, Slope(every=every), steps=steps, batch=1, optim=SGD(lr=0.1), ema=ema)
    average = run.finish().x
    assert average is not student.x
    return start, student.x.detach(), average.detach()


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_constant_decay(decay: float, steps: int) -> None:
    """θ_n = θ₀ − cn and θ̄ₙ = d·θ̄ₙ₋₁ + (1 − d)·θₙ give θ̄ₙ = θₙ + c·d·(1 − dⁿ)/(1 − d)."""
    start, end, average = run_average(EMA(decay=decay, ramp=False), steps)
    close(end, start - 0.1 * steps)
    close(average, end + 0.1 * decay * (1 - decay**steps) / (1 - decay))


@pytest.mark.parametrize("steps", [1, 5, 30])
def test_ramp(steps: int) -> None:
    """While d_k = (1 + k)/(10 + k) is below the limit, the lag θ̄ₙ − θₙ is c·Σ_m d_m·d_{m+1}⋯d_{n−1}, telescoping:
    ∏_{k=m..n−1} (1 + k)/(10 + k) = ∏_{j=1..9} (m + j)/(n + j).
    """
    _, end, average = run_average(EMA(decay=0.999), steps)
    j = torch.arange(1, 10, dtype=F64)
    lag = torch.stack([((m + j) / (steps + j)).prod() for m in range(steps)]).sum()
    close(average, end + 0.1 * lag)


def test_ramp_ends_at_the_decay() -> None:
    ema = EMA(decay=0.8)
    assert [ema.at(n) for n in (34, 35, 36, 10_000)] == pytest.approx([35 / 44, 0.8, 0.8, 0.8])


def test_the_average_follows_steps_and_not_ticks() -> None:
    """A student that steps at every third tick is averaged at every third tick."""
    _, end, average = run_average(EMA(decay=0.9, ramp=False), 30, every=3)
    close(average, end + 0.1 * 0.9 * (1 - 0.9**10) / 0.1)
