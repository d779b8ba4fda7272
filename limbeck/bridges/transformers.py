"""Models of transformers as networks: read from safetensors alone, and written for from_pretrained."""

import json
import shutil
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from limbeck.engine.checkpoint import new_folder
from limbeck.errors import BadFile, Incompatible

Kind = Literal["causal", "masked", "images"]
"""What a model is for: the next token, hidden tokens, or classes of images."""

_TABLES: dict[Kind, str] = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "masked": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "images": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
}
NEED = "a causal or masked language model, or a classifier of images"


def kind_of(name: str) -> Kind:
    """What the class of this name is for, as its folder's config.json has it.

    Raises:
        Incompatible: another class, or transformers is missing.
    """
    auto = _library("transformers.models.auto.modeling_auto")
    for kind, table in _TABLES.items():
        known = getattr(auto, table).values()
        if name in chain.from_iterable((one,) if isinstance(one, str) else one for one in known):
            return kind
    raise Incompatible("a model of transformers", need=NEED, got=name)


def kind_in(folder: str | Path) -> Kind:
    """What the model of a folder is for, by its config.json.

    Raises:
        BadFile: a folder that is no model.
        Incompatible: a model that is none of `Kind`, or transformers is missing.
    """
    return kind_of(_named(folder))


def read_model(folder: str | Path) -> nn.Module:
    """The model of a folder, with its own configuration and parts, in float32 and evaluation mode.

    Weights are read from safetensors alone, whatever precision they are in, and no code of the folder is run.

    Raises:
        BadFile: a folder that is no model, one of pickled weights, or one that lacks weights or has others.
        Incompatible: transformers is missing, or a model that is none of `Kind`.
    """
    folder, library, name = Path(folder), _library("transformers"), _named(folder)
    kind_of(name)
    if not [*folder.glob("*.safetensors")]:
        pickled = next((path.name for path in sorted(folder.glob("*.bin"))), None)
        what = f"only pickled weights, {pickled}, which are not read" if pickled else "no weights"
        raise BadFile(f"{folder} has {what}; save_pretrained() of transformers writes safetensors.")
    settings = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    try:
        with _quiet(library):
            model, found = getattr(library, name).from_pretrained(folder, dtype=torch.float32, **settings)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise BadFile(f"{folder} is not a whole model: {_said(error)}.") from error
    for what in ("missing_keys", "mismatched_keys"):
        if wrong := sorted(map(str, found.get(what) or ())):
            raise BadFile(f"{folder} is not a whole model: its weights have {what.replace('_', ' ')}, {wrong[0]}.")
    if over := _beyond(model, found.get("unexpected_keys") or ()):  # others are of heads that this class has not
        raise BadFile(f"{folder} has weights of more layers than its config.json says: {over}.")
    if getattr(model.config, "use_cache", False):
        model.config.use_cache = False  # what only generation needs would be kept beside every pass
    return model.eval()


def _beyond(model: nn.Module, names: Iterable[str]) -> str | None:
    """The first name of a weight that belongs to a layer after the last of its stack."""
    stacks = {name: len(part) for name, part in model.named_modules() if isinstance(part, nn.ModuleList)}
    for name in sorted(names):
        for stack, n in stacks.items():
            number = name.removeprefix(f"{stack}.").partition(".")[0]
            if name.startswith(f"{stack}.") and number.isdecimal() and int(number) >= n:
                return name
    return None


def _named(folder: str | Path) -> str:
    """The class that a folder's config.json names first."""
    try:
        names = json.loads((Path(folder) / "config.json").read_text()).get("architectures")
    except (OSError, ValueError, AttributeError) as error:
        raise BadFile(f"{folder} is no folder of a model: it has no config.json that can be read.") from error
    if not isinstance(names, list) or not names:
        raise BadFile(f"{folder} is no folder of a model: its config.json names no architectures.")
    return str(names[0])


def write_model(student: nn.Module, folder: str | Path, like: str | Path) -> None:
    """A model's folder that from_pretrained loads: a student, and tokenizer or processor of the model it came from.

    Args:
        student: a model of transformers.
        folder: to be written.
        like: the folder of its teacher.

    Raises:
        Incompatible: a student that is no model of transformers.
        BadFile, Failed: the folder cannot be written.
    """
    library = _library("transformers")
    if not isinstance(student, library.PreTrainedModel):
        raise Incompatible("a model's folder", need="a model of transformers", got=f"a {type(student).__name__}")
    model: Any = student
    with new_folder(Path(folder)) as made:
        for path in sorted(Path(like).iterdir()):
            if path.name.startswith(_BESIDE) or path.suffix in (".jinja", ".tiktoken"):
                shutil.copyfile(path, made / path.name)
        with _quiet(library):
            model.save_pretrained(made)
        known, config = (json.loads((path / "config.json").read_text()) for path in (Path(like), made))
        if "use_cache" in known:  # see `read_model`
            (made / "config.json").write_text(json.dumps({**config, "use_cache": known["use_cache"]}, indent=2) + "\n")


_BESIDE = (
    "tokenizer",
    "special_tokens",
    "added_tokens",
    "vocab",
    "merges",
    "spiece",
    "sentencepiece",
    "preprocessor_config",
    "processor_config",
)
"""How names of files begin that a tokenizer or processor is made of."""


def read_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a model's folder.

    Raises:
        BadFile: there is none, or none that can be read without code of its own.
    """
    library = _library("transformers")
    if not any(path.name.startswith(_BESIDE[:6]) for path in Path(folder).iterdir()):
        raise BadFile(f"{folder} has no tokenizer; its save_pretrained({str(folder)!r}) writes one there.")
    try:
        with _quiet(library):
            return library.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raise what they like
        raise BadFile(f"{folder} has no tokenizer that can be read: {_said(error)}.") from error


def read_processor(folder: str | Path) -> Callable[[Any], Tensor] | None:
    """What makes inputs [1, C, H, W] of a picture, as a model's folder says; None where it says nothing.

    Raises:
        BadFile: it says what transformers cannot do.
    """
    library = _library("transformers")
    if not any((Path(folder) / name).exists() for name in ("preprocessor_config.json", "processor_config.json")):
        return None
    try:
        with _quiet(library):
            made: Any = library.AutoImageProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise BadFile(f"{folder} has no image processor that can be read: {_said(error)}.") from error
    return lambda picture: made(picture, return_tensors="pt")["pixel_values"]


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        fit = "pip install 'limbeck[lm]'"
        raise Incompatible("a model of transformers", need="transformers", got="none installed", fit=fit) from None


@contextmanager
def _quiet(library: Any) -> Generator[None]:
    """Without bars and warnings of the library, which stays as it was set."""
    logs = library.utils.logging
    level, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(level)
        if bars:
            logs.enable_progress_bar()


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")


__all__ = ["Kind", "kind_in", "kind_of", "read_model", "read_processor", "read_tokenizer", "write_model"]
