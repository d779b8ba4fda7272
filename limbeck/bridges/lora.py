"""Adapters that leave for diffusers and come from there, as one file that its pipelines load."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from limbeck.bridges.diffusers import Diffusers, scheduler_of
from limbeck.bridges.folder import DENOISERS, class_of, denoiser_in, index_of, read_part
from limbeck.engine.checkpoint import new_folder
from limbeck.errors import BadFile, Incompatible
from limbeck.students import FewStep
from limbeck.teachers.lora import LowRank, adaptable, adapted

WEIGHTS = "pytorch_lora_weights.safetensors"
"""What pipelines look for."""

ABOUT = "lora_adapter_metadata"
"""Where a file says ranks and scales."""


def write_lora(student: FewStep, folder: str | Path, like: str | Path) -> None:
    """A student's adapters for ``pipeline.load_lora_weights(folder)``, and the scheduler that goes with its steps.

    Args:
        student: of few steps, around a `Diffusers` with adapters; see `low_rank`.
        folder: to be written.
        like: the pipeline that its teacher came from.

    Raises:
        Incompatible: a student without adapters, steps that diffusers would not take, a pipeline that loads none.
        BadFile: ``like`` is no pipeline.
        Failed: the folder cannot be written.
    """
    layers, index, place = _adapters(student), index_of(like), denoiser_in(like)
    if not hasattr(class_of(index["_class_name"]), "load_lora_weights"):
        got, fit = f"a {index['_class_name']}", "--to diffusers, which merges them,"
        raise Incompatible("export to lora", need="a pipeline that loads adapters", got=got, fit=fit)
    scheduler, tensors = scheduler_of(student, read_part(like, "scheduler")), dict[str, Tensor]()
    for name, layer in layers.items():
        for factor, kept in (("A", layer.down), ("B", layer.up)):
            tensors[f"{place}.{name}.lora_{factor}.weight"] = kept.detach().cpu().contiguous()
    about = {f"{place}.{key}": value for key, value in _about(layers).items()}
    with new_folder(Path(folder)) as made:
        save_file(tensors, made / WEIGHTS, {"format": "pt", ABOUT: json.dumps(about)})
        scheduler.save_pretrained(made / "scheduler")


def _adapters(student: FewStep) -> dict[str, LowRank]:
    denoiser = student.denoiser
    if not isinstance(denoiser, Diffusers):
        need, got = "a student around a network of diffusers", f"one around a {type(denoiser).__name__}"
        raise Incompatible("export to lora", need=need, got=got)
    layers = {name: part for name, part in denoiser.net.named_modules() if isinstance(part, LowRank)}
    if not layers:
        got, fit = "one that is a whole network", "--to diffusers, or a run with --rank 16,"
        raise Incompatible("export to lora", need="a student with adapters", got=got, fit=fit)
    if any(isinstance(layer.base, LowRank) for layer in layers.values()):
        got, fit = "adapters on adapters", "--to diffusers, which merges them,"
        raise Incompatible("export to lora", need="adapters on plain layers", got=got, fit=fit)
    return layers


def _about(layers: Mapping[str, LowRank]) -> dict[str, Any]:
    """Ranks and scales as PEFT's settings: the usual ones, and those of the layers that differ."""
    ranks = {name: layer.down.shape[0] for name, layer in layers.items()}
    scales = {name: layer.factor * ranks[name] for name, layer in layers.items()}
    usual = {key: Counter(values.values()).most_common(1)[0][0] for key, values in (("r", ranks), ("a", scales))}
    return {
        "r": usual["r"],
        "lora_alpha": usual["a"],
        "target_modules": sorted(layers),
        "rank_pattern": {f"^{name}": rank for name, rank in ranks.items() if rank != usual["r"]},
        "alpha_pattern": {f"^{name}": scale for name, scale in scales.items() if scale != usual["a"]},
    }


def read_lora(denoiser: Diffusers, path: str | Path) -> Diffusers:
    """A copy of a frozen denoiser with the adapters of a file, or of a folder with one, to be trained on or merged.

    Args:
        denoiser: of the pipeline that the adapters are for; see `read_pipeline`.
        path: what `write_lora`, diffusers or PEFT wrote, with PEFT's names ``….lora_A.weight``.

    Raises:
        BadFile: no such file, or one that holds no adapters of this network.
    """
    path = Path(path) / WEIGHTS if Path(path).is_dir() else Path(path)
    factors, about = _read(path)
    sizes = {name: (len(down), _scale(name, len(down), about)) for name, (down, _) in factors.items()}
    known = adaptable(denoiser.net)
    if missing := sorted(set(sizes) - set(known)):
        kind = type(denoiser.net).__name__
        raise BadFile(
            f"{path} holds adapters for a layer {missing[0]!r}, which is none that a {kind} can have them on."
        )
    other = adapted(denoiser, {f"net.{name}": size for name, size in sizes.items()})
    with torch.no_grad():
        for name, (down, up) in factors.items():
            layer = other.get_submodule(f"net.{name}")
            assert isinstance(layer, LowRank)
            _fill(layer, down, up, f"{path}, layer {name!r}:")
    return other


def _fill(layer: LowRank, down: Tensor, up: Tensor, where: str) -> None:
    for kept, value in ((layer.down, down), (layer.up, up)):
        if kept.shape != value.shape:
            raise BadFile(f"{where} factors must be of shape {tuple(kept.shape)} here, got {tuple(value.shape)}.")
        kept.copy_(value)


def _read(path: Path) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Any]]:
    """Factors (A, B) by the name of their layer, and what the file says of them."""
    try:
        with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call], for it has no types
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, for it has no iterator
            said = json.loads((file.metadata() or {}).get(ABOUT, "{}"))
    except FileNotFoundError:
        raise BadFile(f"{path} does not exist.") from None
    except Exception as error:  # safetensors raises its own untyped errors for damage of every kind
        raise BadFile(f"{path} is not a whole file of adapters: {error}.") from None
    ends = (".lora_A.weight", ".lora_B.weight")
    place = next((one for one in DENOISERS if any(name.startswith(f"{one}.") for name in tensors)), None)
    own = {name.removeprefix(f"{place}."): x for name, x in tensors.items() if place is None or name.startswith(place)}
    layers = {name.removesuffix(end) for name in own for end in ends if name.endswith(end)}
    other = sorted(name for name in own if not name.endswith((*ends, ".alpha")))
    if other or not layers or any(layer + end not in own for layer in layers for end in ends):
        raise BadFile(
            f"{path} needs pairs named ….lora_A.weight and ….lora_B.weight, got {', '.join(other[:1]) or 'half'}."
        )
    about = {key.removeprefix(f"{place}."): value for key, value in said.items()}
    about |= {name: float(value) for name, value in own.items() if name.endswith(".alpha")}
    return {layer: (own[layer + ends[0]], own[layer + ends[1]]) for layer in sorted(layers)}, about


def _scale(name: str, rank: int, about: Mapping[str, Any]) -> float:
    """α of a layer; equal to its rank where the file says nothing. Patterns are regular expressions, as PEFT's are."""
    if (own := about.get(f"{name}.alpha")) is not None:
        return own
    every: dict[str, float] = about.get("alpha_pattern", {})
    known = next((every[key] for key in every if re.match(rf"(.*\.)?({key})$", name)), about.get("lora_alpha", rank))
    return float(known) * (rank**0.5 if about.get("use_rslora") else 1.0)


__all__ = ["read_lora", "write_lora"]
