"""State on disk: safetensors and JSON, written whole or not at all, checked when read; nothing is unpickled."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from limbeck.errors import BadFile

State = Mapping[str, Any]


def flatten(state: State, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A nested state as tensors and plain values by path.

    >>> flatten({"a": {"b": 1}})
    ({}, {'a/b': 1})
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for key, value in state.items():
        path = f"{prefix}{key}"
        if isinstance(value, Tensor):
            tensors[path] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        elif isinstance(value, Mapping) and value:
            inner = flatten(value, f"{path}/")
            tensors, values = tensors | inner[0], values | inner[1]
        else:
            values[path] = value
    return tensors, values


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The nested state behind paths.

    >>> unflatten({"a/b": 1, "a/c": 2})
    {'a': {'b': 1, 'c': 2}}
    """
    state: dict[str, Any] = {}
    for path, value in flat.items():
        *above, name = path.split("/")
        inner = state
        for key in above:
            inner = inner.setdefault(key, {})
        inner[name] = value
    return state


def write_folder(path: Path, files: Mapping[str, bytes] | None = None, state: State | None = None) -> None:
    """A folder with a state and other files, and checksums of all: built under another name, synced, then renamed."""
    temporary = path.with_name(f".{path.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        if state is not None:
            tensors, values = flatten(state)
            save_file(tensors, temporary / "state.safetensors")
            (temporary / "state.json").write_text(json.dumps(values))
        for name, content in (files or {}).items():
            (temporary / name).write_bytes(content)
        seal(temporary)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise BadFile(f"{path} could not be written: {error}.") from error


def seal(folder: Path) -> None:
    """Writes checksums of every file in a folder, and syncs all of it to disk."""
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name != "checksums.json")
    sums = {name: checksum(folder / name) for name in names}
    (folder / "checksums.json").write_text(json.dumps(sums))
    for name in (*names, "checksums.json"):
        _sync(folder / name)
    _sync(folder)


def is_whole(folder: Path) -> bool:
    """Whether a folder was sealed and every file still has its checksum."""
    try:
        sums = json.loads((folder / "checksums.json").read_text())
        return all(checksum(folder / name) == value for name, value in sums.items())
    except (OSError, ValueError, AttributeError):
        return False


def read_state(folder: Path) -> dict[str, Any]:
    """The state of a folder.

    Raises:
        BadFile: if it is damaged or incomplete.
    """
    if not is_whole(folder):
        raise BadFile(f"{folder} is damaged or incomplete.")
    values = json.loads((folder / "state.json").read_text())
    return unflatten({**values, **load_file(folder / "state.safetensors")})


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
