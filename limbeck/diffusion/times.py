"""When to look: distributions and grids of noise levels. Each is a quantile function u ∈ [0, 1] → t, float64."""

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.diffusion.process import Process
from limbeck.errors import BadSetting, in_range
from limbeck.rng import Rng


class Times(ABC):
    """A distribution of noise levels, given by its quantile function, so a grid and a sample are the same thing."""

    @abstractmethod
    def at(self, u: Tensor, process: Process, progress: float = 0.0) -> Tensor:
        """Noise levels t [n] of the process at quantiles u [n] in [0, 1]; progress in [0, 1] is the run's."""

    def sample(self, n: int, process: Process, rng: Rng, progress: float = 0.0) -> Tensor:
        """n independent noise levels, float64 [n]."""
        return self.at(rng.uniform(n), process, progress)

    def within(
        self, segment: tuple[float, float] | None, n: int, process: Process, rng: Rng, progress: float = 0.0
    ) -> Tensor:
        """`sample` for samples that a step from t to s made, ``segment = (s, t)``; most distributions ignore it."""
        return self.sample(n, process, rng, progress)

    def grid(self, n: int, process: Process) -> Tensor:
        """n levels from the noisiest down and a final 0, float64 [n + 1]: what a sampler walks along."""
        u = torch.linspace(1, 0, n, dtype=torch.float64)
        return torch.cat([self.at(u, process), torch.zeros(1, dtype=torch.float64)])


@dataclass(frozen=True, kw_only=True)
class Uniform(Times):
    """Uniform between the fractions lo and hi of the process's own clock (DreamFusion, arXiv 2209.14988, sec. 3).

    >>> from limbeck.diffusion import VP
    >>> Uniform(lo=0.02, hi=0.98).at(torch.tensor([0.0, 1.0], dtype=torch.float64), VP())
    tensor([0.0200, 0.9800], dtype=torch.float64)
    """

    lo: float = 0.02
    hi: float = 0.98

    def __post_init__(self) -> None:
        _check_range(self.lo, self.hi)

    def at(self, u: Tensor, process: Process, progress: float = 0.0) -> Tensor:
        return process.at_fraction(self.lo + (self.hi - self.lo) * u)


@dataclass(frozen=True, kw_only=True)
class LogNormal(Times):
    """ln(σ/α) ~ N(mean, std²), kept inside the process's range (EDM, arXiv 2206.00364, table 1).

    >>> from limbeck.diffusion import EDM
    >>> round(LogNormal().at(torch.tensor([0.5], dtype=torch.float64), EDM()).item(), 6) # exp(−1.2)
    0.301194
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        in_range("std", self.std, 0)

    def at(self, u: Tensor, process: Process, progress: float = 0.0) -> Tensor:
        t = process.at_ratio((self.mean + self.std * torch.special.ndtri(u)).exp())
        return t.clamp(process.t_min, process.t_max)


@dataclass(frozen=True, kw_only=True)
class Karras(Times):
    """σ/α = (a + i·(b − a))^ρ with a = sigma_min^(1/ρ), b = sigma_max^(1/ρ), i uniform in [lo, hi].

    Source: EDM, arXiv 2206.00364, eq. 5, with the index counted from the cleanest level up.

    >>> from limbeck.diffusion import EDM
    >>> Karras().grid(3, EDM())
    tensor([8.0000e+01, 2.5152e+00, 2.0000e-03, 0.0000e+00], dtype=torch.float64)
    """

    lo: float = 0.0
    hi: float = 1.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        _check_range(self.lo, self.hi)
        in_range("sigma_min", self.sigma_min, 0)
        in_range("sigma_max", self.sigma_max, self.sigma_min)
        in_range("rho", self.rho, 1)

    def at(self, u: Tensor, process: Process, progress: float = 0.0) -> Tensor:
        a, b = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        ratio = (a + (self.lo + (self.hi - self.lo) * u) * (b - a)) ** self.rho
        return process.at_ratio(ratio)


@dataclass(frozen=True, kw_only=True)
class Annealed(Times):
    """From one distribution to another of the same kind: every setting moves linearly, and stays from ``until`` on.

    >>> from limbeck.diffusion import VP
    >>> times = Annealed(first=Uniform(hi=0.98), last=Uniform(hi=0.5), until=0.5)
    >>> one = torch.ones(1, dtype=torch.float64)
    >>> [round(times.at(one, VP(), progress).item(), 2) for progress in (0, 0.25, 0.5, 1)]
    [0.98, 0.74, 0.5, 0.5]
    """

    first: Times
    last: Times
    until: float = 1.0

    def __post_init__(self) -> None:
        in_range("until", self.until, 1e-9, 1)
        if type(self.first) is not type(self.last):
            raise BadSetting(
                f"Annealed needs two distributions of one kind, got {type(self.first).__name__} "
                f"and {type(self.last).__name__}."
            )

    def at(self, u: Tensor, process: Process, progress: float = 0.0) -> Tensor:
        done = min(progress / self.until, 1.0)
        first, last = (dataclasses.asdict(times) for times in (self.first, self.last))  # type: ignore[call-overload]
        now = {name: (1 - done) * first[name] + done * last[name] for name in first}
        return type(self.first)(**now).at(u, process)


def _check_range(lo: float, hi: float) -> None:
    in_range("lo", lo, 0, 1)
    in_range("hi", hi, lo, 1)
