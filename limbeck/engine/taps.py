"""Intermediate features of any module, read by name while it runs: nobody edits the model."""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from limbeck.engine.ranks import several
from limbeck.engine.shards import before_backward
from limbeck.errors import Incompatible

Pick = str | Callable[[str, nn.Module], bool]
"""Submodules: a name, a glob (``*`` within one part of a path, ``**`` across parts), or (name, module) → bool."""

_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.|$)")
INPUT = ":in"


@dataclass
class _Box:
    """What hooks write into, while it is open."""

    open: bool = False
    found: dict[str, Tensor] = field(default_factory=dict)
    versions: dict[str, int | None] = field(default_factory=dict)


class _Keep:
    """A hook that puts a tensor into an open box; of copies and pickles of its module it is no part."""

    def __init__(self, box: _Box | None = None, name: str = "", when: Literal["before", "after"] = "after"):
        self.box, self.name, self.when = box, name, when

    def __call__(self, module: nn.Module, args: Any, more: Any) -> None:
        # closed while checkpointing computes again
        if self.box is not None and self.box.open:
            found = first_tensor((args, more) if self.when == "before" else more)
            self.box.found[self.name] = found
            self.box.versions[self.name] = None if torch.compiler.is_compiling() else found._version

    def __deepcopy__(self, memo: object) -> "_Keep":
        return _Keep()

    def __reduce__(self) -> Any:
        return _Keep, ()


class Taps(Mapping[str, Tensor]):
    """What submodules put out, inside ``with taps:``, by name; see `tap`."""

    def __init__(self, module: nn.Module, names: tuple[str, ...]):
        self.names, self._box = names, _Box()
        known = {"": module, **submodules(module)}
        self._handles = [self._hook(known, name) for name in names]
        self._around = {name: tuple(_around(known, name.removesuffix(INPUT))) for name in names}

    def _hook(self, known: Mapping[str, nn.Module], name: str) -> Any:
        path = name.removesuffix(INPUT)
        if path != name:
            return known[path].register_forward_pre_hook(_Keep(self._box, name, "before"), with_kwargs=True)
        return known[path].register_forward_hook(_Keep(self._box, name))

    def __enter__(self) -> Self:
        self._box.found.clear()
        self._box.open = True
        return self

    def __exit__(self, *error: object) -> None:
        self._box.open = False
        self._prepare()

    def _prepare(self) -> None:
        """Backward passes may begin at what was found, where it lies in shards."""
        if not several():
            return
        for name, found in self._box.found.items():
            before_backward(self._around[name], found)

    def __del__(self) -> None:
        self.remove()

    def take(self) -> dict[str, Tensor]:
        """All features of the last pass, which are kept here no longer."""
        taken = dict(self)
        self._prepare()
        self._box.found.clear()
        return taken

    def remove(self) -> None:
        """Takes the hooks off the module."""
        for handle in getattr(self, "_handles", ()):
            handle.remove()

    def __getitem__(self, name: str) -> Tensor:
        if name in self.names and name not in self._box.found:
            got = "a pass that did not reach it, or a module that was compiled and called before it was tapped"
            raise Incompatible(f"tap {name!r}", need="a pass of its module", got=got)
        found, version = self._box.found[name], self._box.versions[name]
        if version is not None and found._version != version:
            need, got = "features that stay as they were put out", "some that a later layer writes into"
            raise Incompatible(f"tap {name!r}", need=need, got=got, fit="a tap of that layer, or inplace=False,")
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _around(known: Mapping[str, nn.Module], path: str) -> Iterator[nn.Module]:
    return (part for other, part in known.items() if not other or f"{path}.".startswith(f"{other}."))


def tap(module: nn.Module, *picks: Pick) -> Taps:
    """Reads what submodules put out, with gradients, without editing the module.

    Inside ``with``, every pass of the module leaves its features there; the last one counts. Hooks are put on once, so
    that ``torch.compile`` sees them if it comes later; they cost nothing outside, and go with the taps.

    Args:
        module: any module, wrapped by ``torch.compile`` or not.
        picks: see `Pick`; ``"head:in"`` is what goes into ``head``. A submodule that puts out a tuple or mapping is
            read by its first tensor.

    Raises:
        Incompatible: no such submodule; it names the nearest.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> with tap(net, "1", "2:in") as seen:
    ...     logits = net(torch.zeros(5, 4))
    >>> seen["1"].shape, seen["1"] is seen["2:in"]
    (torch.Size([5, 8]), True)
    """
    return Taps(module, find(module, *picks))


def find(module: nn.Module, *picks: Pick, by: str = "tap") -> tuple[str, ...]:
    """The names of the submodules that are meant, each once, in the order of the picks and then of the module.

    Errors name who asks, ``by``.

    Raises:
        Incompatible: a pick that fits no submodule.

    >>> find(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), lambda name, part: isinstance(part, nn.Linear))
    ('0', '2')
    """
    known = submodules(module)
    return tuple(dict.fromkeys(name for pick in picks for name in _found(pick, known, type(module).__name__, by)))


def _found(pick: Pick, known: Mapping[str, nn.Module], kind: str, by: str) -> list[str]:
    if not isinstance(pick, str):
        names = [name for name, part in known.items() if pick(name, part)]
        if not names:
            raise Incompatible(by, need="a choice that fits some submodule", got=f"none of the {kind}'s")
        return names
    stem = pick.removesuffix(INPUT)
    pattern = re.escape(stem).replace(r"\*\*", ".*").replace(r"\*", r"[^.]*").replace(r"\?", r"[^.]")
    names = [name + pick[len(stem) :] for name in known if re.fullmatch(pattern, name)]
    if not names:
        near = difflib.get_close_matches(stem, known, n=3, cutoff=0) or ["(it has none)"]
        fit = " or ".join(map(repr, near))
        raise Incompatible(by, need=f"a submodule {stem!r}", got=f"a {kind} without it", fit=fit)
    return names


def submodules(module: nn.Module) -> dict[str, nn.Module]:
    """All parts of a module by the names that its author gave them, without those of wrappers around them."""
    parts = ((_WRAPPERS.sub("", name).lstrip("."), part) for name, part in module.named_modules())
    return {name: part for name, part in parts if name}


def first_tensor(value: Any) -> Tensor:
    """The tensor itself, or the first one in a tuple, list or mapping.

    Raises:
        Incompatible: something without one.
    """
    if isinstance(value, Tensor):
        return value
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    for item in items:
        if isinstance(item, Tensor | tuple | list | Mapping):
            return first_tensor(item)
    raise Incompatible("tap", need="a submodule that puts out tensors", got=f"a {type(value).__name__}")


__all__ = ["Taps", "find", "tap"]
