"""The latent space of a pipeline: its decoder, read when it is first needed, and the scale of what it decodes."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.bridges.folder import config_of_part, index_of, read_part
from limbeck.errors import BadFile

AT_ONCE = 2**20
"""Pixels that are decoded at once."""


class Latents:
    """What a pipeline's latents decode to.

    Args:
        folder: of the pipeline.

    Raises:
        BadFile: a pipeline whose decoder has no configuration that can be read.
    """

    def __init__(self, folder: Path):
        self.folder, self.there = folder, "vae" in index_of(folder)
        self.config = config_of_part(folder, "vae") or {}
        if self.there and not self.config:
            raise BadFile(f"{folder} is not a whole pipeline: its vae has no config.json that can be read.")

    @property
    def factor(self) -> int:
        """How many pixels high and wide a latent is."""
        widths = self.config.get("encoder_block_out_channels") or self.config.get("block_out_channels")
        return 2 ** (len(widths) - 1) if widths else 1

    def pixels(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width of the images of latents [C, H, W]."""
        return shape[-2] * self.factor, shape[-1] * self.factor

    @cached_property
    def decoder(self) -> Any:
        """The network that decodes, frozen."""
        return read_part(self.folder, "vae").requires_grad_(False).eval()

    def unscaled(self, x: Tensor) -> Tensor:
        """Latents as the decoder wants them, z = x/s + m for a scaling factor s and a shift m; shape of x."""
        mean, std = self.config.get("latents_mean"), self.config.get("latents_std")
        if mean is not None and std is not None:
            mean, std = (x.new_tensor(value).view(1, -1, 1, 1) for value in (mean, std))
            return x * std / self.config.get("scaling_factor", 1.0) + mean
        return x / self.config.get("scaling_factor", 1.0) + (self.config.get("shift_factor") or 0.0)

    @torch.no_grad()
    def decode(self, x: Tensor) -> Iterator[Tensor]:
        """The images of latents [B, C, H, W], a batch at a time."""
        self.decoder.to(x.device)
        high, wide = self.pixels(tuple(x.shape))
        for part in x.split(max(1, AT_ONCE // (high * wide))):
            yield self.decoder.decode(self.unscaled(part), return_dict=False)[0]


__all__ = ["Latents"]
