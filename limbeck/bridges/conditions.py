"""What networks of diffusers are told beside x_t: labels or texts, each style of conditions in its network's words."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import Incompatible
from limbeck.tree import Tree

LABELLED = {"UNet2DModel": "num_class_embeds", "DiTTransformer2DModel": "num_embeds_ada_norm"}
"""Networks that take classes, and where their configuration says how many."""

PROMPTED = (
    "UNet2DConditionModel",
    "PixArtTransformer2DModel",
    "SD3Transformer2DModel",
    "FluxTransformer2DModel",
    "SanaTransformer2DModel",
)
"""Networks that take texts."""


PACKED = 128
"""Height and width of latents where a pipeline of packed ones has no size of its own."""


def config_of(net: nn.Module) -> Mapping[str, Any]:
    """The configuration of a network of diffusers; empty for other modules."""
    return getattr(net, "config", {})


def is_packed(net: nn.Module) -> bool:
    """Whether a network wants its latents as a sequence of 2 × 2 patches with their places, as Flux does."""
    return "img_ids" in inspect.signature(net.forward).parameters


def predict(net: nn.Module, x_t: Tensor, timestep: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """What a network of diffusers puts out at x_t [B, C, H, W], in the shape of x_t but for more channels.

    Args:
        net: called by ``timestep`` and the inputs' names.
        x_t: noised samples.
        timestep: as its scheduler counts, [B].
        inputs: its conditions.

    >>> class Net(nn.Module):
    ...     def forward(self, x, timestep, return_dict=True):
    ...         return (x + timestep[:, None],)
    >>> predict(Net(), torch.zeros(1, 2), torch.ones(1), {})
    tensor([[1., 1.]])
    """
    if not is_packed(net):
        timestep = timestep * config_of(net).get("timestep_scale", 1.0)
        return net(x_t, timestep=timestep, **inputs, return_dict=False)[0]
    high, wide = x_t.shape[2] // 2, x_t.shape[3] // 2
    rows, columns = torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij")
    places = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1).to(x_t)
    words = x_t.new_zeros(inputs["encoder_hidden_states"].shape[1], 3)
    if config_of(net)["guidance_embeds"]:
        inputs = {"guidance": x_t.new_full((len(x_t),), 3.5, dtype=torch.float32), **inputs}
    out = net(pack(x_t), timestep=timestep / 1000, img_ids=places, txt_ids=words, **inputs, return_dict=False)[0]
    return unpack(out, high, wide)


def pack(x: Tensor) -> Tensor:
    """Latents [B, C, 2H, 2W] as a sequence of patches [B, HW, 4C].

    >>> pack(torch.arange(4.0).view(1, 1, 2, 2))
    tensor([[[0., 1., 2., 3.]]])
    """
    return x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(x: Tensor, high: int, wide: int) -> Tensor:
    """The latents [B, C, 2H, 2W] behind patches [B, HW, 4C], H high and W wide.

    >>> x = torch.rand(1, 3, 4, 6)
    >>> torch.equal(unpack(pack(x), 2, 3), x)
    True
    """
    patches = x.unflatten(1, (high, wide)).unflatten(3, (-1, 2, 2))
    return patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def sides_of(net: nn.Module) -> tuple[int, int]:
    """Height and width of a network's own samples."""
    size = PACKED if is_packed(net) else config_of(net)["sample_size"] or 0
    return (size, size) if isinstance(size, int) else tuple(size)


def tokens_of(net: nn.Module) -> int | None:
    """How many tokens a transformer makes of a sample; None for other networks."""
    patch = 2 if is_packed(net) else config_of(net).get("patch_size")
    high, wide = sides_of(net)
    return (high // patch) * (wide // patch) if isinstance(patch, int) else None


def labels_of(net: nn.Module) -> int | None:
    """How many classes a network knows, if it is told classes."""
    return config_of(net).get(LABELLED.get(type(net).__name__, ""), None)


def null_label(net: nn.Module) -> dict[str, Tree]:
    """What a network of classes is told for no class, [1]: DiT has one label more; a U-Net has none to spare."""
    if type(net).__name__ != "DiTTransformer2DModel":
        return {}
    return {"class_labels": torch.tensor([config_of(net)["num_embeds_ada_norm"]])}


def keep_labels(net: nn.Module) -> None:
    """Labels stay what they are in training too: whoever wants to learn without them leaves them out himself."""
    layers: list[Any] = [layer for layer in net.modules() if type(layer).__name__ == "LabelEmbedding"]
    for layer in layers:
        layer.dropout_prob = 0.0


def prompt_inputs(net: nn.Module, text: Mapping[str, Tensor], pixels: tuple[int, int]) -> dict[str, Tree]:
    """Embedded prompts as the inputs of a network, by its own names.

    Args:
        net: of diffusers.
        text: ``embeds`` [B, L, D], and where the encoders give them ``pooled`` [B, D'] and ``mask`` [B, L].
        pixels: height and width of an image, which some networks are told.

    Raises:
        Incompatible: a network that wants something else.

    >>> class SD3Transformer2DModel(nn.Module): pass
    >>> text = {"embeds": torch.zeros(1, 5, 8), "pooled": torch.zeros(1, 8)}
    >>> sorted(prompt_inputs(SD3Transformer2DModel(), text, (64, 64)))
    ['encoder_hidden_states', 'pooled_projections']
    """
    inputs: dict[str, Tree] = {"encoder_hidden_states": text["embeds"]}
    size = torch.tensor([pixels], dtype=torch.float32, device=text["embeds"].device).expand(len(text["embeds"]), -1)
    match type(net).__name__:
        case "UNet2DConditionModel":
            match config_of(net)["addition_embed_type"]:
                case None:
                    return inputs
                case "text_time":  # of the original, where it was cut, and of the target
                    time_ids = torch.cat([size, torch.zeros_like(size), size], dim=1)
                    return {**inputs, "added_cond_kwargs": {"text_embeds": text["pooled"], "time_ids": time_ids}}
        case "SD3Transformer2DModel" | "FluxTransformer2DModel":
            return {**inputs, "pooled_projections": text["pooled"]}
        case "SanaTransformer2DModel":
            return {**inputs, "encoder_attention_mask": text["mask"]}
        case "PixArtTransformer2DModel":
            told = _is_told_sizes(net)
            more = {"resolution": size if told else None, "aspect_ratio": size[:, :1] / size[:, 1:] if told else None}
            return {**inputs, "encoder_attention_mask": text["mask"], "added_cond_kwargs": more}
    raise Incompatible("prompts", need=f"one of {', '.join(PROMPTED)}", got=f"a {type(net).__name__} of another kind")


def _is_told_sizes(net: nn.Module) -> bool:
    told = config_of(net).get("use_additional_conditions")
    return config_of(net)["sample_size"] == 128 if told is None else told


__all__ = [
    "LABELLED",
    "PROMPTED",
    "config_of",
    "is_packed",
    "keep_labels",
    "labels_of",
    "null_label",
    "pack",
    "predict",
    "prompt_inputs",
    "sides_of",
    "tokens_of",
    "unpack",
]
