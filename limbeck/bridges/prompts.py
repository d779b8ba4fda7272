"""Prompts as conditions: a pipeline's own text encoders run once over a file of them, and are let go."""

import hashlib
import inspect
import json
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from limbeck.bridges.conditions import config_of
from limbeck.bridges.folder import class_of, config_of_part, index_of
from limbeck.engine.checkpoint import checksum, is_whole, new_folder, writing
from limbeck.errors import BadFile, Incompatible

Text = dict[str, Tensor]
"""``embeds`` [B, L, D], and where a pipeline's encoders give them ``pooled`` [B, D'] and ``mask`` [B, L]."""


AT_ONCE = 2**26
"""Bytes of embedded prompts in a file, or of a single one."""


@dataclass(frozen=True)
class Prompts:
    """Prompts and what a pipeline's encoders made of them, which stays on disk until rows of it are asked for.

    Args:
        texts: the prompts.
        negative: what the empty prompt is replaced by; None for what the pipeline itself takes for it.
        null: of the empty prompt, or of ``negative``, [1, …].
        folder: holds what was made of the prompts; None where all are as the empty one, for whoever wants shapes alone.
        each: so many of them are in one file.
    """

    texts: tuple[str, ...]
    negative: str | None
    null: Text
    folder: Path | None
    each: int = 1

    def rows(self, index: Tensor) -> Text:
        """Those of prompts by their numbers [B]: [B, …]."""
        if self.folder is None or isinstance(index, FakeTensor):
            return {name: x[torch.zeros_like(index)] for name, x in self.null.items()}
        index = index.cpu()
        made = {name: x.new_empty(len(index), *x.shape[1:]) for name, x in self.null.items()}
        for k in (index // self.each).unique().tolist():
            mine = index // self.each == k
            for name, x in load_file(self.folder / _file(k)).items():  # mapped, so that only these rows are read
                made[name][mine] = x[index[mine] - k * self.each]
        return made


def _file(k: int) -> str:
    return f"rows-{k:05d}.safetensors"


def read_prompts(file: Path) -> tuple[str, ...]:
    """The prompts of a text file, one a line; empty lines are left out.

    Raises:
        BadFile: no such file, one that is not text, or one without prompts.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "prompts.txt"
    >>> _ = path.write_text("a red fox\\n\\nan owl at night\\n")
    >>> read_prompts(path)
    ('a red fox', 'an owl at night')
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise BadFile(f"{file} is no file of prompts: it is not text in UTF-8.") from None
    except OSError as error:
        raise BadFile(f"{file} cannot be read as a file of prompts: {error.strerror}.") from error
    if "\0" in text:
        raise BadFile(f"{file} is no file of prompts: it is not text in UTF-8.")
    if not (prompts := tuple(line.strip() for line in text.split("\n") if line.strip())):
        raise BadFile(f"{file} has no prompts; one a line is needed.")
    return prompts


def encode(
    folder: Path, texts: Sequence[str], negative: str | None = None, *, into: Path | None = None, batch: int = 32
) -> Prompts:
    """Runs the text encoders of a pipeline's folder over prompts, and lets them go.

    Args:
        folder: of the pipeline.
        texts: the prompts.
        negative: in the place of the empty prompt.
        into: a folder to be written, which `kept` reads; by default one that is removed when nobody needs it any more.
        batch: so many prompts at once.

    Raises:
        Incompatible: a pipeline that takes no prompts.
        BadFile: encoders that cannot be read.
        Failed: the folder cannot be written.
    """
    about = {"prompts": texts, "negative": negative, "encoders": key_of(folder), "stamp": stamp_of(folder)}
    pipeline = _encoders(folder)
    null = _embed_null(pipeline, negative)
    each = max(1, AT_ONCE // sum(x.nbytes for x in null.values()))
    home = None if into else Path(tempfile.mkdtemp(prefix="limbeck-"))
    try:
        with new_folder(into := into or cast(Path, home) / "prompts") as made, writing(into):
            for k, start in enumerate(range(0, len(texts), each)):
                some = texts[start : start + each]
                parts = [_embed(pipeline, list(some[i : i + batch])) for i in range(0, len(some), batch)]
                save_file({name: torch.cat([part[name] for part in parts]) for name in parts[0]}, made / _file(k))
            save_file(null, made / "null.safetensors")
            (made / "prompts.json").write_text(json.dumps({**about, "each": each}, indent=1, ensure_ascii=False))
        made = _opened(into)
    except BaseException:
        if home:
            shutil.rmtree(home, ignore_errors=True)
        raise
    if home:
        weakref.finalize(made, shutil.rmtree, home, ignore_errors=True)
    return made


def unread(folder: Path, texts: Sequence[str], net: nn.Module) -> Prompts:
    """Prompts in the shapes that `encode` gives, by configurations alone: all of zeros, for whoever asks for no values.

    Args:
        folder: of the pipeline; neither weights nor tokenizers need to be there.
        texts: the prompts, or none for one of any words.
        net: its denoiser, which knows how wide embeddings are.

    Raises:
        Incompatible: a network that takes no prompts.
    """
    config, kind, extra = config_of(net), type(net).__name__, dict[str, Tensor]()
    match kind:
        case "UNet2DConditionModel":
            width = config["cross_attention_dim"]
            if config["addition_embed_type"] == "text_time":
                told = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
                extra["pooled"] = torch.zeros(1, told)
        case "SD3Transformer2DModel" | "FluxTransformer2DModel":
            width, extra["pooled"] = config["joint_attention_dim"], torch.zeros(1, config["pooled_projection_dim"])
        case "PixArtTransformer2DModel" | "SanaTransformer2DModel":
            width, extra["mask"] = config["caption_channels"], torch.ones(1, _length(folder, kind), dtype=torch.long)
        case _:
            raise Incompatible("prompts", need="a pipeline with text encoders", got=f"a {kind} without them")
    null = {"embeds": torch.zeros(1, _length(folder, kind), width), **extra}
    return Prompts(tuple(texts) or ("",), None, null, None)


def _length(folder: Path, kind: str) -> int:
    """Tokens that a denoiser of this kind is told: as many as its pipeline says, as CLIP has, or, of SD3, both."""
    pipeline = class_of(index_of(folder).get("_class_name"))
    own = _takes(pipeline.__call__).get("max_sequence_length")
    configs = (config_of_part(folder, name) or {} for name in ("text_encoder", "text_encoder_2"))
    clip = next((int(n) for config in configs if (n := config.get("max_position_embeddings"))), 77)
    return clip if own is None else int(own.default) + (clip if kind.startswith("SD3") else 0)


def kept(folder: Path, like: Path) -> Prompts | None:
    """What `encode` wrote into a folder, if it is whole and of the encoders of the pipeline ``like``."""
    if not is_whole(folder):
        return None
    try:
        about = json.loads((folder / "prompts.json").read_text())
        same = about["stamp"] == stamp_of(like) or about["encoders"] == key_of(like)
        return _opened(folder) if same else None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None


def _opened(folder: Path) -> Prompts:
    about, null = json.loads((folder / "prompts.json").read_text()), load_file(folder / "null.safetensors")
    return Prompts(tuple(about["prompts"]), about["negative"], null, folder, about["each"])


def key_of(folder: Path) -> str:
    """A digest of every file of a pipeline's text encoders and tokenizers."""
    return _digest(folder, checksum)


def stamp_of(folder: Path) -> str:
    """A digest that is another one as soon as one of those files is written or replaced; none of them is read.

    The time of a file's last change of any kind, which no program can set, is in it, so that copies have another stamp.
    """

    def said(path: Path) -> str:
        about = path.stat()
        return f"{about.st_size} {about.st_mtime_ns} {about.st_ctime_ns} {about.st_ino}"

    return _digest(folder, said)


def _digest(folder: Path, said: Callable[[Path], str]) -> str:
    index = index_of(folder)
    names = sorted(path for part in index if _is_of_text(part) for path in (folder / part).rglob("*") if path.is_file())
    lines = [f"{path.relative_to(folder).as_posix()}:{said(path)}" for path in names]
    return hashlib.sha256("\n".join([str(index.get("_class_name")), *lines]).encode()).hexdigest()


def _is_of_text(part: str) -> bool:
    return part.startswith(("text_encoder", "tokenizer"))


def _encoders(folder: Path) -> Any:
    """The pipeline without what is not needed to read texts."""
    index = index_of(folder)
    kind = class_of(index.get("_class_name"))
    if not any(map(_is_of_text, index)) or not hasattr(kind, "encode_prompt"):
        raise Incompatible("prompts", need="a pipeline with text encoders", got=f"a {kind.__name__} without them")
    parts = {name: value for name, value in index.items() if isinstance(value, list) and name != "scheduler"}
    left: dict[str, Any] = {name: None for name, value in parts.items() if not _is_of_text(name) or value[:1] == [None]}
    if "requires_safety_checker" in index:
        left["requires_safety_checker"] = False  # nothing is shown to anyone here
    try:
        pipeline = kind.from_pretrained(folder, use_safetensors=True, local_files_only=True, **left)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        text = " ".join(str(error).split())[:200].rstrip(".")
        raise BadFile(f"{folder} has no text encoders that can be read: {text}.") from error
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


@torch.no_grad()
def _embed(pipeline: Any, texts: list[str]) -> Text:
    """Embedded prompts, as the pipeline's own call would embed them."""
    given = _ask(pipeline, prompt=texts, do_classifier_free_guidance=False)
    if _is_masked(pipeline):
        return _named(embeds=given[0], mask=given[1])
    if "negative_prompt" not in _takes(pipeline.encode_prompt):
        return _named(embeds=given[0], pooled=given[1])
    return _named(embeds=given[0], pooled=given[2] if len(given) > 2 else None)


@torch.no_grad()
def _embed_null(pipeline: Any, negative: str | None) -> Text:
    """The negative side of guidance as the pipeline's own call has it."""
    if "negative_prompt" not in _takes(pipeline.encode_prompt):
        return _embed(pipeline, [negative or ""])
    more = {} if negative is None else {"negative_prompt": negative}
    given = _ask(pipeline, prompt="", do_classifier_free_guidance=True, **more)
    if _is_masked(pipeline):
        return _named(embeds=given[2], mask=given[3])
    return _named(embeds=given[1], pooled=given[3] if len(given) > 2 else None)


def _ask(pipeline: Any, **said: Any) -> tuple[Any, ...]:
    """``encode_prompt`` with the settings that a call of the pipeline has by default."""
    takes, call = _takes(pipeline.encode_prompt), _takes(pipeline.__call__)
    usual = {name: call[name].default for name in takes if name in call and call[name].default is not _NONE}
    said |= {"device": pipeline.device, "num_images_per_prompt": 1}
    return pipeline.encode_prompt(**{**usual, **{name: value for name, value in said.items() if name in takes}})


_NONE = inspect.Parameter.empty


def _takes(function: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


def _is_masked(pipeline: Any) -> bool:
    return "prompt_attention_mask" in _takes(pipeline.encode_prompt)


def _named(**tensors: Tensor | None) -> Text:
    return {name: tensor.cpu() for name, tensor in tensors.items() if tensor is not None}


__all__ = ["Prompts", "encode", "kept", "key_of", "read_prompts", "stamp_of", "unread"]
