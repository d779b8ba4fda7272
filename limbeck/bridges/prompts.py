"""Prompts as conditions: a pipeline's own text encoders run once over a file of them, and are let go."""

import hashlib
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.bridges.conditions import config_of
from limbeck.bridges.folder import config_of_part, index_of, kind_of
from limbeck.engine.checkpoint import checksum, is_whole, read_state, write_folder
from limbeck.errors import BadFile, Incompatible

Text = dict[str, Tensor]
"""``embeds`` [B, L, D], and where a pipeline's encoders give them ``pooled`` [B, D'] and ``mask`` [B, L]."""


@dataclass(frozen=True)
class Prompts:
    """Prompts and what a pipeline's encoders made of them.

    Args:
        texts: the prompts.
        negative: what the empty prompt is replaced by; None for what the pipeline itself takes for it.
        rows: of the prompts, [N, …].
        null: of the empty prompt, or of ``negative``, [1, …].
        key: of the encoders that were asked.
    """

    texts: tuple[str, ...]
    negative: str | None
    rows: Text
    null: Text
    key: str

    def write(self, folder: Path) -> None:
        """Writes them into a folder that `kept` reads.

        Raises:
            Failed: if it cannot be written.
        """
        about = {"prompts": self.texts, "negative": self.negative, "encoders": self.key}
        files = {"prompts.json": json.dumps(about, indent=1, ensure_ascii=False).encode()}
        write_folder(folder, files, state={"rows": self.rows, "null": self.null})


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


def encode(folder: Path, texts: Sequence[str], negative: str | None = None, *, batch: int = 32) -> Prompts:
    """Runs the text encoders of a pipeline's folder over prompts, and lets them go.

    Args:
        folder: of the pipeline.
        texts: the prompts.
        negative: in the place of the empty prompt.
        batch: so many prompts at once.

    Raises:
        Incompatible: a pipeline that takes no prompts.
        BadFile: encoders that cannot be read.
    """
    pipeline = _encoders(folder)
    parts = [_embed(pipeline, list(texts[k : k + batch])) for k in range(0, len(texts), batch)]
    rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Prompts(tuple(texts), negative, rows, _embed_null(pipeline, negative), key_of(folder))


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
    rows = {name: x.expand(max(1, len(texts)), *x.shape[1:]) for name, x in null.items()}
    return Prompts(tuple(texts) or ("",), None, rows, null, "")


def _length(folder: Path, kind: str) -> int:
    """Tokens that a denoiser of this kind is told: as many as its pipeline says, as CLIP has, or, of SD3, both."""
    pipeline = kind_of(index_of(folder).get("_class_name"))
    own = _takes(pipeline.__call__).get("max_sequence_length")
    configs = (config_of_part(folder, name) or {} for name in ("text_encoder", "text_encoder_2"))
    clip = next((int(n) for config in configs if (n := config.get("max_position_embeddings"))), 77)
    return clip if own is None else int(own.default) + (clip if kind.startswith("SD3") else 0)


def kept(folder: Path, like: Path) -> Prompts | None:
    """What `Prompts.write` wrote into a folder, if it is whole and of the encoders of the pipeline ``like``."""
    if not is_whole(folder):
        return None
    try:
        about, state = json.loads((folder / "prompts.json").read_text()), read_state(folder)
        known = Prompts(tuple(about["prompts"]), about["negative"], state["rows"], state["null"], about["encoders"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return known if known.key == key_of(like) else None


def key_of(folder: Path) -> str:
    """A digest of every file of a pipeline's text encoders and tokenizers."""
    index = index_of(folder)
    names = sorted(path for part in index if _is_of_text(part) for path in (folder / part).rglob("*") if path.is_file())
    sums = [f"{path.relative_to(folder).as_posix()}:{checksum(path)}" for path in names]
    return hashlib.sha256("\n".join([str(index.get("_class_name")), *sums]).encode()).hexdigest()


def _is_of_text(part: str) -> bool:
    return part.startswith(("text_encoder", "tokenizer"))


def _encoders(folder: Path) -> Any:
    """The pipeline without what is not needed to read texts."""
    index = index_of(folder)
    kind = kind_of(index.get("_class_name"))
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


__all__ = ["Prompts", "encode", "kept", "key_of", "read_prompts", "unread"]
