"""A smaller model of the teacher's own family as the student."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from limbeck.bridges.transformers import kind_of, read_model, read_tokenizer
from limbeck.engine.recipe import Prior, Problem
from limbeck.errors import BadSetting, Incompatible, in_range

_WIDTHS = ("intermediate_size", "ffn_dim", "n_inner")
"""What configurations call the width of a perceptron, which grows and shrinks with the hidden one."""


@dataclass(frozen=True, kw_only=True)
class Smaller:
    """A student of the teacher's kind: fewer of its layers, a narrower one, or what a folder holds.

    Layers are copied from the teacher evenly, the first and the last among them, as DistilBERT's were; of 12 these are
    six: 0, 2, 4, 7, 9, 11. What lies before and after them is copied too. A narrower one starts with random weights.

    Args:
        layers: how many; half of the teacher's by default, or all of them where ``hidden`` is given.
        hidden: numbers of a token; the perceptrons' width changes by the same factor, the number of heads stays.
        folder: of a model to start with instead, of the same kind and vocabulary.

    Raises:
        BadSetting: more layers than there are, a width that the heads do not divide, a folder and sizes at once.
        Incompatible: a teacher whose layers are not one stack that its configuration counts, a folder with a model of
            another kind, vocabulary or number of classes.

    Source: Sanh et al. 2019, arXiv 1910.01108, sec. 3.
    """

    layers: int | None = None
    hidden: int | None = None
    folder: str | None = None

    def __post_init__(self) -> None:
        in_range("layers", 1 if self.layers is None else self.layers, 1)
        in_range("hidden", 1 if self.hidden is None else self.hidden, 1)
        if self.folder is not None and (self.layers or self.hidden):
            raise BadSetting("a student is either what a folder holds or has layers and hidden of its own, not both.")

    def __call__(self, problem: Problem, prior: Prior | None = None) -> nn.Module:
        """The student of a problem made of a model's folder, to be trained."""
        if self.folder is not None:
            return _other(self.folder, problem).requires_grad_(True)
        return self.of(problem.teacher)

    @torch.no_grad()
    def of(self, teacher: nn.Module) -> nn.Module:
        """The student of a model of transformers, to be trained."""
        stack, n = layers_of(teacher)
        layers = self.layers or (n if self.hidden else max(1, n // 2))
        if layers > n:
            raise BadSetting(f"layers must be at most the teacher's {n}, got {layers}.")
        chosen = [round(i * (n - 1) / max(1, layers - 1)) for i in range(layers)]
        known: Any = teacher
        config = copy.deepcopy(known.config)
        for name, value in vars(known.config).items():  # what each layer has of its own
            if isinstance(value, list) and len(value) == n and "layer" in name:
                setattr(config, name, [value[i] for i in chosen])
        config.num_hidden_layers = layers
        if self.hidden is not None:
            _narrow(config, self.hidden)
        try:
            student = type(teacher)(config)
        except (ValueError, TypeError, RuntimeError, AttributeError, IndexError) as error:
            need, got = "a model that can be made smaller by its configuration", f"{type(teacher).__name__}: {error}"
            raise Incompatible("a student", need=need, got=got.rstrip("."), fit="--student.folder") from error
        if self.hidden is None:
            theirs, names = teacher.state_dict(), [f"{stack}.{i}." for i in range(layers)]
            origin = {name: f"{stack}.{i}." for name, i in zip(names, chosen, strict=True)}
            student.load_state_dict({name: theirs[_renamed(name, origin)] for name in student.state_dict()})
        if hasattr(student, "generation_config"):
            student.generation_config = copy.deepcopy(known.generation_config)
        return student.requires_grad_(True)


def layers_of(model: nn.Module) -> tuple[str, int]:
    """The name of a model's stack of layers, and how many there are.

    Raises:
        Incompatible: none or several that its configuration could count.
    """
    n = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    lists = [name for name, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part) == n]
    found = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    if n is None or len(found) != 1:
        got = f"a {type(model).__name__} with {len(found)} such"
        need = "a model with one stack of layers that its configuration counts as num_hidden_layers"
        raise Incompatible("a smaller student", need=need, got=got, fit="--student.folder")
    return found[0], n


def _renamed(name: str, origin: dict[str, str]) -> str:
    start = next((start for start in origin if name.startswith(start)), "")
    return origin[start] + name[len(start) :] if start else name


def _narrow(config: Any, hidden: int) -> None:
    """Sets the hidden width of a configuration, and what goes with it."""
    before, heads = config.hidden_size, config.num_attention_heads
    if hidden % heads:
        raise BadSetting(f"hidden must be a multiple of the teacher's {heads} heads, got {hidden}.")
    config.hidden_size = hidden
    if getattr(config, "head_dim", None) is not None:
        config.head_dim = hidden // heads
    for name in _WIDTHS:
        if (width := getattr(config, name, None)) is not None:
            setattr(config, name, max(1, width * hidden // before))


def _other(folder: str, problem: Any) -> nn.Module:
    """The model of another folder, if it has the teacher's outputs."""
    if hasattr(problem, "tokenizer"):
        mine, theirs = (one.get_vocab() for one in (read_tokenizer(folder), problem.tokenizer))
        if mine != theirs:
            need, got = f"the teacher's vocabulary of {len(theirs)} tokens", f"another one of {len(mine)}"
            raise Incompatible(f"the student in {folder}", need=need, got=got)
    model: Any = read_model(folder)
    known: Any = problem.teacher
    ours, needed = (kind_of(type(one).__name__) for one in (model, known))
    if ours != needed:
        need, got = f"a model of the teacher's kind, {type(known).__name__}", type(model).__name__
        raise Incompatible(f"the student in {folder}", need=need, got=got)
    size = "num_labels" if needed == "images" else "vocab_size"
    if (got := getattr(model.config, size)) != (need := getattr(known.config, size)):
        raise Incompatible(f"the student in {folder}", need=f"the teacher's {size} of {need}", got=str(got))
    return model


__all__ = ["Smaller", "layers_of"]
