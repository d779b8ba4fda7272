"""Where the noise of score distillation comes from: fresh each tick, stuck to the student, or by inversion."""

from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.guidance import CFG, Guidance
from limbeck.diffusion.times import Times
from limbeck.engine.roles import Cast
from limbeck.engine.schedule import Schedule, value_at
from limbeck.engine.student import Draw, Student
from limbeck.engine.tick import Noised, Tick
from limbeck.errors import Incompatible, in_range


class Noise(ABC):
    """How samples become x_t. A subclass is a frozen keyword-only dataclass."""

    def check(self, cast: Cast) -> None:  # noqa: B027, most noise fits every student
        """Raises `Incompatible` where it does not fit."""

    @abstractmethod
    def see(self, tick: Tick, times: Times) -> Noised:
        """The student's samples, noised at levels drawn from ``times``."""

    def target(self, seen: Noised) -> tuple[Tensor, Tensor]:
        """What a critic learns to predict at these samples, shape of x, and the weight of each example, [B]."""
        return seen.x.detach(), torch.ones_like(seen.t)


@dataclass(frozen=True, kw_only=True)
class Fresh(Noise):
    """New noise for every sample in every tick, shared by all objectives of equal times."""

    def see(self, tick: Tick, times: Times) -> Noised:
        return tick.noised(times)


@dataclass(frozen=True, kw_only=True)
class Attached(Noise):
    """Noise that sticks to the student's surface, ẽ ← √(1 − γ)·ẽ + √γ·ξ in each tick that uses it; views share it.

    Args:
        refresh: γ; 0 keeps the noise for the whole run, 1 makes it new each tick.

    Raises:
        Incompatible: a student whose samples are never the same twice.

    Source: Yan et al. 2025, arXiv 2501.05445, sec. 4; with γ = 0 the fixed noise of arXiv 2401.09050.
    """

    refresh: float = 0.0

    def __post_init__(self) -> None:
        in_range("refresh", self.refresh, 0, 1)

    def check(self, cast: Cast) -> None:
        student = cast.need("student", Student, by=self)
        if student.surface is None:
            got = f"a {type(student).__name__}"
            raise Incompatible("Attached", need="a student that noise can stick to", got=got, fit="Particles or Image")
        size, like = student.surface, next(student.parameters())
        cast.keep(f"noise {self}", lambda: torch.randn(size, dtype=like.dtype, device=like.device))
        cast.keep(f"noise {self} at", lambda: torch.zeros((), dtype=torch.int64))

    def see(self, tick: Tick, times: Times) -> Noised:
        def make(draw: Draw, key: Hashable) -> Noised:
            assert draw.carry is not None
            eps, t = draw.carry(self._now(tick)), tick.levels(draw, times, key)
            return Noised(draw.x, tick.process.add_noise(draw.x, eps, t), t, eps, draw.cond, tick.process, key, draw)

        return tick.seen((self, times), make)

    def _now(self, tick: Tick) -> Tensor:
        noise, at = tick.cast.kept[f"noise {self}"], tick.cast.kept[f"noise {self} at"]
        assert isinstance(noise, Tensor) and isinstance(at, Tensor)
        if self.refresh and tick.i > at:  # once a tick, whatever the number of micro-batches
            fresh = tick.rng(self, shared=True).normal(*noise.shape, dtype=noise.dtype)
            noise.mul_((1 - self.refresh) ** 0.5).add_(self.refresh**0.5 * fresh)
            at.fill_(tick.i)
        return noise


@dataclass(frozen=True, kw_only=True)
class Inverted(Noise):
    """x_t by DDIM inversion of x: steps of ``stride`` along the clock to x_r, r = t − gap, then one step from r to t.

    Every step moves by the teacher's prediction at its start, x_s' = α'·x0(x_s) + σ'·ε(x_s). The result's ``via`` is
    x_r, and its ε is what the path amounts to, (x_t − α·x)/σ.

    Args:
        stride: of the steps up to r, as a fraction of the process's clock.
        gap: between r and t, as a fraction of the clock; a number or a schedule.
        guidance: on the teacher along the path; none of the condition by default.

    Source: ISM, arXiv 2311.11284, eq. 10 and 11 and algorithm 1; the inversion is DDIM's, arXiv 2010.02502, sec. 4.3.
    """

    stride: float = 0.2
    gap: float | Schedule = 0.1
    guidance: Guidance | None = field(default_factory=lambda: CFG(scale=0.0))

    def __post_init__(self) -> None:
        in_range("stride", self.stride, 1e-3, 1)

    def check(self, cast: Cast) -> None:
        cast.need("teacher", Denoiser, by=self)

    def see(self, tick: Tick, times: Times) -> Noised:
        def make(draw: Draw, key: Hashable) -> Noised:
            t = tick.levels(draw, times, key)
            return self.invert(tick, draw, t, key)

        return tick.seen((self, times), make)

    def invert(self, tick: Tick, draw: Draw, t: Tensor, key: Hashable) -> Noised:
        """The path from clean samples to levels t [B]."""
        process, x = tick.process, draw.x
        clock = process.fraction(t)
        end = (clock - value_at(self.gap, tick.progress)).clamp_min(0)  # of the steps, [B]
        at = torch.zeros_like(clock)
        here = Noised(x, x, process.at_fraction(at), torch.zeros_like(x), draw.cond, process, (key, 0), draw)
        while bool((at < end).any()):
            at = torch.minimum(at + self.stride, end)
            x0 = tick.denoise("teacher", here, self.guidance)
            here = here.moved(x0, process.at_fraction(at), self.stride)
        last = here.moved(tick.denoise("teacher", here, self.guidance), t, "last")
        eps = process.convert(x, last.x_t, t, "x0", "eps")
        return Noised(x, last.x_t, t, eps, draw.cond, process, key, draw, via=here)
