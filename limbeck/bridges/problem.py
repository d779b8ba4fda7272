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
from limbeck.engine.data import Source
from limbeck.errors import Incompatible
from limbeck.problems.problem import Generative
from limbeck.rng import Rng
from limbeck.tree import Tree

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Pipeline(Generative):
    """An unconditional pipeline of diffusers: no data, samples of the teacher's own as the reference.

    A generator starts where a pipeline's own first step is, so that it can leave as one; see `write_pipeline`.

    Args:
        folder: of the pipeline.
        weights: whether they are read; else the network is on the meta device.

    Raises:
        Incompatible: diffusers is missing, a network that wants inputs, or a process that is no table.
        BadFile: a folder that is no pipeline.
    """

    judged = 512

    def __init__(self, folder: str | Path, *, weights: bool = True):
        self.folder, self.name = Path(folder), Path(folder).name
        self.network_read: Diffusers = read_pipeline(folder, weights=weights)
        config: Any = self.network_read.net.config
        if not (kind := type(self.network_read.net).__name__).startswith("UNet2DModel"):
            fit = "Diffusers and distill(), with conditions of your own"
            raise Incompatible("a problem made of a pipeline", need="a UNet2DModel without inputs", got=kind, fit=fit)
        if not isinstance(self.network_read.process, Tabulated):
            need, got = "a table of noise levels", type(self.network_read.process).__name__
            raise Incompatible("a problem made of a pipeline", need=need, got=got)
        size = config["sample_size"]
        self.shape = (config["in_channels"], *((size, size) if isinstance(size, int) else size))
        (self.ratio,) = steps_of(self.network_read.clock, 1)
        self.times = Karras(sigma_min=0.02, sigma_max=min(self.ratio, 160.0))  # a table may end in pure noise

    @property
    def teacher(self) -> Diffusers:
        return self.network_read

    @property
    def source(self) -> Source | None:
        return None

    def conditions(self, n: int, rng: Rng) -> Tree:
        return None

    @cached_property
    def _reference(self) -> Tensor:
        noise = Rng((self.name, "reference")).normal(2 * self.judged, *self.shape, dtype=torch.float32)
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
