"""Folders of pipelines: what they consist of, and ids of pipelines that are elsewhere."""

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from limbeck.catalogue import is_id
from limbeck.errors import BadFile, Incompatible

DENOISERS = ("unet", "transformer")
"""Where a pipeline keeps its denoiser."""


def library() -> Any:
    """diffusers.

    Raises:
        Incompatible: it is not installed.
    """
    try:
        return import_module("diffusers")
    except ImportError:
        fit = "pip install 'limbeck[diffusers]'"
        raise Incompatible("a pipeline", need="diffusers", got="none installed", fit=fit) from None


def local(name: str | Path) -> Path:
    """The folder of a pipeline: itself, or where the hub of diffusers has put the pipeline of this id.

    Raises:
        BadFile: neither a folder, nor an id that the hub knows, or no hub.
        Incompatible: an id, and diffusers is missing.
    """
    if Path(name).exists() or not is_id(str(name)):
        return Path(name)
    try:
        return Path(library().DiffusionPipeline.download(str(name), use_safetensors=True))
    except (OSError, ValueError) as error:
        text = " ".join(str(error).split())[:200].rstrip(".")
        raise BadFile(f"{name} is no folder here, and no hub gave a pipeline of this id: {text}.") from error


def index_of(folder: str | Path) -> dict[str, Any]:
    """What a pipeline consists of: (library, class) by the names of its parts.

    Raises:
        BadFile: a folder that is no pipeline.
    """
    try:
        index = json.loads((Path(folder) / "model_index.json").read_text())
    except (OSError, ValueError) as error:
        raise BadFile(
            f"{folder} is not the folder of a pipeline: it has no model_index.json that can be read."
        ) from error
    if not isinstance(index, dict) or "scheduler" not in index:
        raise BadFile(f"{folder} is no pipeline of a diffusion model: it has no scheduler.")
    return index


def denoiser_in(folder: str | Path) -> str:
    """The part that is the denoiser.

    Raises:
        Incompatible: none that is known.
        BadFile: a folder that is no pipeline.
    """
    index = index_of(folder)
    if not (found := [name for name in DENOISERS if name in index]):
        parts = ", ".join(name for name in index if not name.startswith("_"))
        raise Incompatible("a pipeline", need=f"a {' or a '.join(DENOISERS)}", got=parts)
    return found[0]


def class_of(name: object) -> Any:
    """A class of diffusers.

    Raises:
        Incompatible: the installed diffusers has none of this name.
    """
    if (kind := getattr(library(), str(name), None)) is None:
        raise Incompatible("a pipeline", need="classes that the installed diffusers knows", got=str(name))
    return kind


def read_part(folder: str | Path, name: str, *, weights: bool = True, dtype: torch.dtype = torch.float32) -> Any:
    """A part of a pipeline's folder; weights are read from safetensors alone.

    Args:
        folder: of the pipeline.
        name: of the part.
        weights: whether a network's are read; else it is made from its configuration, on the meta device.
        dtype: of a network's parameters as they are read; buffers stay in single precision.

    Raises:
        BadFile: it cannot be read.
    """
    here = {"subfolder": name, "local_files_only": True}
    try:
        kind = class_of(index_of(folder)[name][1])
        if name == "scheduler":
            return kind.from_pretrained(folder, **here)
        if not weights:
            with torch.device("meta"):
                return kind.from_config(kind.load_config(folder, **here))
        read = kind.from_pretrained(folder, use_safetensors=True, torch_dtype=dtype, **here)
        if dtype != torch.float32:
            _fill_buffers(read, Path(folder) / name)
        return read
    except (OSError, ValueError, LookupError, TypeError) as error:
        text = " ".join(str(error).split())[:200].rstrip(".")
        raise BadFile(f"{folder} is not a whole pipeline: {text}.") from error


def _fill_buffers(net: nn.Module, folder: Path) -> None:
    """Gives a network that was read in half the buffers of its files as they are."""
    wanted = set(net.state_dict()) - {name for name, _ in net.named_parameters()}
    for path in sorted(folder.glob("*.safetensors")) if wanted else ():
        if "." in path.stem:  # a variant, such as fp16, that was not asked for
            continue
        with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call], for it has no types
            for name in wanted & {*file.keys()}:
                owner, _, leaf = name.rpartition(".")
                value: Tensor = file.get_tensor(name)
                net.get_submodule(owner).register_buffer(leaf, value.float() if value.is_floating_point() else value)


def config_of_part(folder: str | Path, name: str) -> Mapping[str, Any] | None:
    """The configuration of a part, without its weights; None where a pipeline has no such part."""
    try:
        return json.loads((Path(folder) / name / "config.json").read_text())
    except (OSError, ValueError):
        return None


__all__ = ["DENOISERS", "class_of", "config_of_part", "denoiser_in", "index_of", "library", "local", "read_part"]
