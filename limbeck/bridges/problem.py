"""A pipeline's folder as something to distil on: its denoiser teaches, and is the judge of what it taught."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.bridges.diffusers import Diffusers, read_pipeline, steps_of
from limbeck.diffusion import Karras
from limbeck.diffusion.table import Tabulated
from limbeck.engine.data import Batch, Drawn, Source
from limbeck.errors import Incompatible
from limbeck.problems.problem import Generative
from limbeck.rng import Rng
from limbeck.tree import Tree

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RATIO = 1.2
"""Where one step suits a pipeline, σ/α; see `steps_of`."""


class Pipeline(Generative):
    """An unconditional pipeline of diffusers: samples of the teacher's own are data and reference, each in its part.

    A generator's steps are some that a pipeline takes by itself, so that it can leave as one; see `write_pipeline`.

    Attributes:
        drawn: how many samples of the teacher's are the data; they are made when a run first asks for some.

    Args:
        folder: of the pipeline.

    Raises:
        Incompatible: diffusers is missing, a network that wants inputs, or a process that is no table.
        BadFile: a folder that is no pipeline.
    """

    judged = 512
    drawn = 2048

    def __init__(self, folder: str | Path):
        self.folder, self.name = Path(folder), Path(folder).name
        self.network_read: Diffusers = read_pipeline(folder)
        config: Any = self.network_read.net.config
        if not (kind := type(self.network_read.net).__name__).startswith("UNet2DModel"):
            fit = "Diffusers and distill(), with conditions of your own"
            raise Incompatible("a problem made of a pipeline", need="a UNet2DModel without inputs", got=kind, fit=fit)
        if not isinstance(self.network_read.process, Tabulated):
            need, got = "a table of noise levels", type(self.network_read.process).__name__
            raise Incompatible("a problem made of a pipeline", need=need, got=got)
        size = config["sample_size"]
        self.shape = (config["in_channels"], *((size, size) if isinstance(size, int) else size))
        (self.ratio,) = steps_of(self.network_read.clock, 1, ratio=RATIO)
        (noisiest,) = steps_of(self.network_read.clock, 1)
        self.times = Karras(sigma_min=0.02, sigma_max=min(noisiest, 40.0))  # above, x0 from ε is mostly its error

    @property
    def teacher(self) -> Diffusers:
        return self.network_read

    @property
    def source(self) -> Source:
        return Drawn(self._some, fields=("x",))

    def _some(self, n: int, rng: Rng) -> Batch:
        return {"x": self._data[rng.integers(n, self.drawn)]}

    @cached_property
    def _data(self) -> Tensor:
        return self._samples("data", self.drawn)

    def levels(self, ratios: tuple[float, ...]) -> tuple[float, ...]:
        return steps_of(self.network_read.clock, len(ratios), ratio=ratios[0])

    def conditions(self, n: int, rng: Rng) -> Tree:
        return None

    @cached_property
    def _reference(self) -> Tensor:
        return self._samples("reference", 2 * self.judged)

    def _samples(self, name: str, n: int) -> Tensor:
        noise = Rng((self.name, name)).normal(n, *self.shape, dtype=torch.float32)
        return torch.cat([self.teacher_sample(part, None) for part in noise.split(256)])

    def reference(self) -> Tensor:
        return self._reference

    def agrees(self, x: Tensor, cond: Tree) -> Tensor:
        return torch.ones(len(x), dtype=torch.bool)

    def show(self, axes: "Axes", x: Tensor, cond: Tree) -> None:
        tiles = F.pad(x, (1, 1, 1, 1), value=-1)
        tiles = torch.cat([tiles, tiles.new_full((-len(tiles) % 10, *tiles.shape[1:]), -1.0)]).unflatten(0, (-1, 10))
        picture = (tiles.permute(2, 0, 3, 1, 4).flatten(1, 2).flatten(2) / 2 + 0.5).clamp(0, 1)
        colours = picture if len(picture) == 3 else picture[:1].expand(3, -1, -1)
        axes.imshow(colours.movedim(0, 2).numpy())


__all__ = ["Pipeline"]
