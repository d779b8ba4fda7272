"""Networks of real size with random weights: their public configurations, and tiny ones of the same kind."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.bridges import Clock, Diffusers, clock_of
from limbeck.diffusion import RectifiedFlow
from limbeck.rng import seeded
from limbeck.tree import Tree, tree_map


@dataclass(frozen=True, kw_only=True)
class Model:
    """A denoiser of a published system.

    Args:
        kind: its class in diffusers.
        config: of that class, as published with the weights.
        shape: of one latent.
        inputs: shapes of its conditions for one example, as a tree.
        batch: rows of a tick that suit a card of 80 GB.
        taps: whose features a discriminator reads, with its channels; none where they are no maps.
    """

    kind: str
    config: dict[str, Any]
    shape: tuple[int, ...]
    inputs: dict[str, Any]
    batch: int
    taps: dict[str, int]

    def build(self, device: str, dtype: torch.dtype) -> Diffusers:
        """The network with random weights, frozen."""
        import diffusers

        with seeded(self.kind), torch.device(device):
            net: nn.Module = getattr(diffusers, self.kind)(**self.config).to(dtype)
        return Diffusers(net.requires_grad_(False).eval(), self.clock(), null=self.conditions(1), taps=self.taps)

    def clock(self) -> Clock:
        """Its noise."""
        from diffusers import DDIMScheduler

        if self.kind == "SD3Transformer2DModel":
            return Clock(RectifiedFlow(), "flow", scale=1000.0)
        return clock_of(DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"))

    def conditions(self, n: int) -> dict[str, Tree]:
        """Random conditions of n examples, on the processor."""
        with seeded(self.kind, "conditions"):
            return _each(self.inputs, lambda shape: torch.randn(n, *shape))


def _each(tree: dict[str, Any], make: Callable[[Any], Tensor]) -> dict[str, Any]:
    return {name: _each(value, make) if isinstance(value, dict) else make(value) for name, value in tree.items()}


def placed(tree: Tree, device: str, dtype: torch.dtype) -> Tree:
    """Conditions where the network is, in its precision."""
    return tree_map(lambda x: x.to(device, dtype), tree)


SD15 = Model(  # runwayml/stable-diffusion-v1-5, unet/config.json; 860 M parameters
    kind="UNet2DConditionModel",
    config={
        "sample_size": 64,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "block_out_channels": (320, 640, 1280, 1280),
    },
    shape=(4, 64, 64),
    inputs={"encoder_hidden_states": (77, 768)},
    batch=16,
    taps={"mid_block": 1280},
)

SDXL = Model(  # stabilityai/stable-diffusion-xl-base-1.0, unet/config.json; 2.57 G parameters
    kind="UNet2DConditionModel",
    config={
        "sample_size": 128,
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    shape=(4, 128, 128),
    inputs={"encoder_hidden_states": (77, 2048), "added_cond_kwargs": {"text_embeds": (1280,), "time_ids": (6,)}},
    batch=4,
    taps={"mid_block": 1280},
)

DIT2B = Model(  # stabilityai/stable-diffusion-3-medium-diffusers, transformer/config.json; 2.03 G parameters
    kind="SD3Transformer2DModel",
    config={
        "sample_size": 128,
        "num_layers": 24,
        "num_attention_heads": 24,
        "attention_head_dim": 64,
        "caption_projection_dim": 1536,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 192,
    },
    shape=(16, 128, 128),
    inputs={"encoder_hidden_states": (333, 4096), "pooled_projections": (2048,)},
    batch=4,
    taps={},
)

MODELS = {"sd15": SD15, "sdxl": SDXL, "dit2b": DIT2B}

_THIN = {"block_out_channels": (8, 8, 16), "norm_num_groups": 4, "layers_per_block": 1, "sample_size": 8}
_SMALL: dict[str, dict[str, Any]] = {
    "sd15": {
        "config": {
            **_THIN,
            "block_out_channels": (8, 8, 16, 16),
            "cross_attention_dim": 8,
            "attention_head_dim": 2,
        },
        "shape": (4, 8, 8),
        "inputs": {"encoder_hidden_states": (5, 8)},
        "taps": {"mid_block": 16},
    },
    "sdxl": {
        "config": {
            **SDXL.config,
            **_THIN,
            "cross_attention_dim": 8,
            "attention_head_dim": (1, 1, 2),
            "transformer_layers_per_block": (1, 1, 2),
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 32,
        },
        "shape": (4, 8, 8),
        "inputs": {"encoder_hidden_states": (5, 8), "added_cond_kwargs": {"text_embeds": (8,), "time_ids": (6,)}},
        "taps": {"mid_block": 16},
    },
    "dit2b": {
        "config": {
            "sample_size": 8,
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "caption_projection_dim": 16,
            "joint_attention_dim": 8,
            "pooled_projection_dim": 8,
            "pos_embed_max_size": 8,
        },
        "shape": (16, 8, 8),
        "inputs": {"encoder_hidden_states": (5, 8), "pooled_projections": (8,)},
    },
}


def tiny(name: str) -> Model:
    """The same kind of network, small enough for a processor."""
    return replace(MODELS[name], **{"batch": 4, **_SMALL[name]})
