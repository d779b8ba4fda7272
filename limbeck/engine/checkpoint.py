"""State on disk: safetensors and JSON, written whole or not at all, checked when read; nothing is unpickled."""

import hashlib
import json
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from limbeck.errors import BadFile, Failed, LimbeckError

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
    """A folder with a state and other files, written whole or not at all.

    Raises:
        Failed: if it cannot be written.
    """
    with new_folder(path) as folder, writing(path):
        if state is not None:
            tensors, values = flatten(state)
            save_file(tensors, folder / "state.safetensors")
            (folder / "state.json").write_text(json.dumps(values))
        for name, content in (files or {}).items():
            (folder / name).write_bytes(content)


@contextmanager
def new_folder(path: Path) -> Generator[Path]:
    """A folder to fill under another name; after the block it is sealed, synced, and renamed, replacing an old one."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with writing(path):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        yield partial
        with writing(path):
            seal(partial)
            if path.exists():
                shutil.rmtree(path)
            os.replace(partial, path)
            _sync(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def new_file(path: Path) -> Generator[Path]:
    """A file to write under another name; after the block it is synced and renamed, replacing an old one."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with writing(path):
            yield partial
            _sync(partial)
            os.replace(partial, path)
            _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, error: type[LimbeckError] = Failed) -> Generator[None]:
    """Turns what goes wrong on a disk inside the block into one sentence."""
    try:
        yield
    except (OSError, SafetensorError) as cause:
        reason = str(cause).partition("] ")[2] or cause  # without "[Errno 28]"
        raise error(f"{path} cannot be written: {reason}.") from cause


def seal(folder: Path) -> None:
    """Writes checksums of every file below a folder, and syncs all of it to disk."""
    every = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    names = sorted(name for name in every if name != "checksums.json")
    sums = {name: checksum(folder / name) for name in names}
    (folder / "checksums.json").write_text(json.dumps(sums))
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def is_whole(folder: Path) -> bool:
    """Whether a folder was sealed and every file still has its checksum."""
    try:
        sums = json.loads((folder / "checksums.json").read_text())
        return bool(sums) and all(checksum(folder / name) == value for name, value in sums.items())
    except (OSError, ValueError, AttributeError):
        return False


def read_state(folder: Path) -> dict[str, Any]:
    """The state of a folder.

    Raises:
        BadFile: if it is damaged or incomplete.
    """
    if not is_whole(folder):
        raise BadFile(f"{folder} is damaged or incomplete.")
    try:
        values = json.loads((folder / "state.json").read_text())
        return unflatten({**values, **load_file(folder / "state.safetensors")})
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise BadFile(f"{folder} holds no state that can be read: {error}.") from error


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
