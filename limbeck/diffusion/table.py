"""Noise processes of discrete time: a table of noise levels, as most published models were trained with."""

import math
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from limbeck.diffusion.process import Process
from limbeck.errors import BadSetting


@dataclass(frozen=True)
class Tabulated(Process):
    """α = cos φ, σ = sin φ with the angle φ a line between the entries of a table, α² = ᾱ_k at t = k + 1.

    t = 0 is clean, and t − 1 is the step that a network of discrete time is told. The last entry may be 0, which is
    pure noise: zero terminal signal-to-noise ratio (Lin et al. 2023, arXiv 2305.08891).

    Args:
        table: ᾱ_k, falling from below 1, as of DDPM (Ho et al. 2020, arXiv 2006.11239).

    Raises:
        BadSetting: a table that does not fall within [0, 1).

    >>> p, t = Tabulated((0.9, 0.5, 0.0)), torch.tensor([0.0, 2.0, 3.0], dtype=torch.float64)
    >>> p.alpha(t).square().round(decimals=12).abs(), p.at_ratio(p.ratio(t)).round(decimals=12)
    (tensor([1.0000, 0.5000, 0.0000], dtype=torch.float64), tensor([0., 2., 3.], dtype=torch.float64))
    """

    table: tuple[float, ...]
    t_min: float = 1.0
    t_max: float = field(init=False)
    angles: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        levels = (1.0, *self.table)
        if len(levels) < 2 or any(not 0 <= b < a for a, b in pairwise(levels)):
            raise BadSetting(f"a table of noise levels must fall within [0, 1), got {len(self.table)} that do not.")
        object.__setattr__(self, "t_max", float(len(self.table)))
        angles = [math.atan2(math.sqrt(1 - level), math.sqrt(level)) for level in levels]
        object.__setattr__(self, "angles", torch.tensor(angles, dtype=torch.float64))

    def _segment(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """(φ, dφ/dt) where segment k of the angle begins, [B] each."""
        angles = self.angles.to(k.device)
        return angles[k], angles[k + 1] - angles[k]

    def _angle(self, t: Tensor) -> tuple[Tensor, Tensor]:
        k = t.floor().long().clamp(0, len(self.table) - 1)
        start, slope = self._segment(k)
        return start + (t.double() - k) * slope, slope

    def alpha(self, t: Tensor) -> Tensor:
        return self._angle(t)[0].cos()

    def sigma(self, t: Tensor) -> Tensor:
        return self._angle(t)[0].sin()

    def begin(self, t: Tensor) -> Tensor:
        """1: published samplers begin with noise of unit variance, that of α²·1 + σ²."""
        return torch.ones_like(t)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle, slope = self._angle(t)
        return -angle.sin() * slope, angle.cos() * slope

    def at_ratio(self, ratio: Tensor) -> Tensor:
        angle, angles = ratio.double().atan(), self.angles.to(ratio.device)
        k = (torch.searchsorted(angles, angle, right=True) - 1).clamp(0, len(self.table) - 1)
        start, slope = self._segment(k)
        return (k + (angle - start) / slope).clamp(0, self.t_max)


__all__ = ["Tabulated"]
