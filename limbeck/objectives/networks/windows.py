"""Contrast of parts: windows of maps at several scales, each against the same window of other examples."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.engine.tick import Tick
from limbeck.errors import BadSetting, Incompatible, above_zero, in_range
from limbeck.objectives.networks.contrast import info_nce, pairs_of
from limbeck.objectives.networks.features import OnFeatures


@dataclass(frozen=True, kw_only=True)
class MultiScaleContrast(OnFeatures):
    """Sliding windows of maps contrasted place by place, mean over them: examples by their channels, and the reverse.

    Each window is the mean of the k × k places that it covers; one as large as the map is `Contrast` of pooled
    features. In the reverse a channel of the student is to find its own of the teacher by what it says of the batch.

    Args: those of `OnFeatures`; tokens are taken as square maps, vectors as maps of one place.
        windows: sides k of the windows; 0 is the whole map.
        temperature: τ.
        channels: weight of the contrast of channels.

    Raises:
        BadSetting: no pairs or windows, a window below 0, a temperature that is not above 0.
        Incompatible: no such taps, tokens that are no square, windows larger than the map, a batch of one or
            that is cut.

    Source: MSDCRD, Wang & Wang 2025, arXiv 2502.05835, for windows at several scales and both contrasts within a batch;
    all windows count alike here, where the paper sorts them.

    >>> from torch import nn
    >>> from limbeck import Dataset, distill
    >>> net = lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    >>> run = distill(net(), net(), MultiScaleContrast(pairs={"1": "1"}), Dataset(x=torch.randn(9, 1, 6, 6)), steps=1)
    >>> sorted(next(iter(run)).losses)
    ['multiscalecontrast']
    """

    coupled: ClassVar[bool] = True
    windows: tuple[int, ...] = (0, 2)
    temperature: float = 0.1
    channels: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero("temperature", self.temperature)
        in_range("channels", self.channels, 0)
        if not self.windows or min(self.windows) < 0:
            raise BadSetting(f"MultiScaleContrast needs windows of side 0 or more, got {self.windows}.")

    def value(self, student: Tensor, teacher: Tensor, tick: Tick) -> Tensor:
        s, t = (windowed(square_maps(x, by=self), self.windows) for x in (student, teacher))
        rows = info_nce(s, t, temperature=self.temperature).mean()
        if not self.channels:
            return rows
        return rows + self.channels * info_nce(s.mT, t.mT, temperature=self.temperature).mean()


def square_maps(x: Tensor, by: object) -> Tensor:
    """Features as maps, [B, C, H, W]; a vector is at one place."""
    side = math.isqrt(x.shape[1]) if x.dim() == 3 else 0
    if x.dim() == 3 and side * side == x.shape[1]:
        x = x.mT.unflatten(2, (side, side))
    if x.dim() == 2:
        x = x[..., None, None]
    if x.dim() != 4:
        raise Incompatible(type(by).__name__, need="maps or a square of tokens", got=f"features {list(x.shape)}")
    pairs_of(x, by)
    return x


def windowed(x: Tensor, windows: tuple[int, ...]) -> Tensor:
    """Means of maps [B, C, H, W] over all windows of these sides, at every place, [R, B, C]; 0 is the whole map.

    Raises:
        Incompatible: a window that is larger than the map.

    >>> windowed(torch.arange(9.0).view(1, 1, 3, 3), (0, 2)).flatten()
    tensor([4., 2., 3., 5., 6.])
    """
    if max(windows) > min(x.shape[2:]):
        got = f"maps {x.shape[2]} × {x.shape[3]}"
        raise Incompatible("MultiScaleContrast", need=f"maps of {max(windows)} × {max(windows)} or more", got=got)
    seen = [F.avg_pool2d(x, k, stride=1).flatten(2) if k else x.mean((2, 3))[..., None] for k in windows]
    return torch.cat(seen, 2).permute(2, 0, 1)


__all__ = ["MultiScaleContrast", "windowed"]
