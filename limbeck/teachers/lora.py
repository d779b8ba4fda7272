"""Low-rank adapters: trainable copies of a network that share its frozen weights, and plain weights again."""

import copy
import difflib
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import BadSetting, Incompatible, in_range

M = TypeVar("M", bound=nn.Module)
Layer = nn.Linear | nn.Conv2d
EVERY = ("*",)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class LowRank(nn.Module):
    """y = Wx + b + (scale/rank)·B(Ax) around a frozen layer; B starts at 0, so y starts as it was.

    Of a convolution A has its kernel, stride and padding, and B is of one pixel. The adapter is computed in the
    precision of x, whatever A and B are kept in.

    Args:
        base: the frozen layer, shared with whoever owns it; see `adaptable`. It may have adapters of its own.
        rank: of A and B.
        scale: of the adapter; equal to the rank for a factor of 1.
        dtype: of A and B.
    """

    def __init__(self, base: "Layer | LowRank", rank: int, scale: float, dtype: torch.dtype | None = None):
        super().__init__()
        self.base, self.factor = base, scale / rank
        out, *rest = base.weight.shape
        like = {"device": base.weight.device, "dtype": dtype or own_dtype(base.weight.dtype)}
        self.down = nn.Parameter(torch.empty(rank, *rest).to(**like))
        self.up = nn.Parameter(torch.zeros(out, rank, *(1 for _ in rest[1:])).to(**like))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    @property
    def plain(self) -> "Layer":
        """The layer under all adapters."""
        return self.base.plain if isinstance(self.base, LowRank) else self.base

    @property
    def weight(self) -> Tensor:
        """The base's own, for code that asks a layer for its precision or device."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The base's own."""
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        down, up, plain = self.down.to(x.dtype), self.up.to(x.dtype), self.plain
        if isinstance(plain, nn.Linear):
            return self.base(x) + self.factor * F.linear(F.linear(x, down), up)
        low = F.conv2d(x, down, None, plain.stride, plain.padding)
        return self.base(x) + self.factor * F.conv2d(low, up)

    def delta(self) -> Tensor:
        """(scale/rank)·B·A, of the shape of W."""
        return self.factor * (self.up.flatten(1) @ self.down.flatten(1)).reshape(self.base.weight.shape)


def own_dtype(base: torch.dtype) -> torch.dtype:
    """What adapters on weights of this dtype are kept in: single precision where half would lose small steps.

    >>> own_dtype(torch.bfloat16), own_dtype(torch.float64)
    (torch.float32, torch.float64)
    """
    return base if base in (torch.float32, torch.float64) else torch.float32


def low_rank(
    module: M,
    rank: int,
    targets: Sequence[str] = EVERY,
    *,
    scale: float | None = None,
    dtype: torch.dtype | None = None,
) -> M:
    """A copy of a module whose layers carry trainable adapters; everything else is shared and frozen.

    The copy holds the module's own parameters, not copies of them: memory grows by the adapters alone. Buffers, such as
    running statistics, are its own. Every copy is a tree of modules by itself, so that nothing is ever switched: what
    is computed again in a backward pass is what was computed.

    Args:
        module: its parameters must be frozen, for they stay as they are.
        rank: r of the adapters B·A, at least 1.
        targets: globs of layers by name, or by the end of it as in PEFT: ``to_q`` is every ``….to_q``. Linear layers,
            and convolutions that PEFT knows as well: of one group, padded with zeros, without dilation.
        scale: α; the adapters are multiplied by α/r. By default α = r.
        dtype: of the adapters; by default that of their layers, and single precision where those have half.

    Raises:
        Incompatible: a module without such layers, or without one that some target fits; parameters that learn.
        BadSetting: a rank below 1, a dtype that cannot be trained.

    Source: Hu et al. 2021, arXiv 2106.09685, sec. 4.1.

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).requires_grad_(False)
    >>> copy = low_rank(net, 2)
    >>> copy[0].base.weight is net[0].weight, [n for n, p in copy.named_parameters() if p.requires_grad][:2]
    (True, ['0.down', '0.up'])
    """
    check_adapters(rank, targets)
    if dtype not in (None, *DTYPES):
        raise BadSetting(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {dtype}.")
    return adapted(module, {name: (rank, scale or rank) for name in targeted(module, targets)}, dtype)


def check_adapters(rank: int | None, targets: Sequence[str]) -> None:
    """Raises `BadSetting` for settings of adapters that mean nothing; rank None is for none of them.

    >>> check_adapters(None, ("to_q",))
    Traceback (most recent call last):
    limbeck.errors.BadSetting: targets are of adapters, which need a rank, got targets to_q and no rank.
    """
    in_range("rank", 1 if rank is None else rank, 1)
    if rank is None and tuple(targets) != EVERY:
        raise BadSetting(f"targets are of adapters, which need a rank, got targets {', '.join(targets)} and no rank.")
    if not targets:
        raise BadSetting("targets must name at least one layer, got none.")


def adapted(module: M, sizes: Mapping[str, tuple[int, float]], dtype: torch.dtype | None = None) -> M:
    """A copy of a frozen module with adapters of (rank, scale) on the layers of these names; see `low_rank`."""
    if learning := next((name for name, p in module.named_parameters() if p.requires_grad), None):
        got, fit = f"a {type(module).__name__} whose {learning} learns", "module.requires_grad_(False)"
        raise Incompatible("low_rank", need="a frozen network", got=got, fit=fit)
    other = sharing(module)
    for name, (rank, scale) in sizes.items():
        path, _, leaf = name.rpartition(".")
        setattr(other.get_submodule(path), leaf, LowRank(adaptable(other)[name], rank, scale, dtype))
    return other


def sharing(module: M) -> M:
    """A copy of a module that holds its parameters; buffers are its own."""
    return copy.deepcopy(module, {id(p): p for p in module.parameters()})


def adaptable(module: nn.Module) -> dict[str, Layer]:
    """The layers that adapters fit on, by name."""
    return {
        f"{path}.{leaf}" if path else leaf: layer
        for path, parent in module.named_modules()
        if not isinstance(parent, nn.MultiheadAttention)  # it reads the weights and never calls the layer
        for leaf, layer in parent.named_children()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and _is_usual(layer))
    }


def _is_usual(conv: nn.Conv2d) -> bool:
    return (conv.groups, conv.padding_mode, *conv.dilation) == (1, "zeros", 1, 1)


def targeted(module: nn.Module, targets: Sequence[str]) -> list[str]:
    """The names of the layers that some target fits.

    Raises:
        Incompatible: a module without layers for adapters, a target that fits none of them.

    >>> targeted(nn.ModuleDict({"to_q": nn.Linear(2, 2), "to_k": nn.Linear(2, 2)}), ("to_v",))
    Traceback (most recent call last):
    limbeck.errors.Incompatible: low_rank needs a layer 'to_v', got a ModuleDict without it; 'to_q' or 'to_k' would fit.
    """
    known, kind = list(adaptable(module)), type(module).__name__
    if not known:
        raise Incompatible("low_rank", need="a network with linear layers", got=f"a {kind}")
    for target in targets:
        if not any(_fits(name, target) for name in known):
            ends = {".".join(name.split(".")[k:]): None for name in known for k in range(name.count(".") + 1)}
            near = difflib.get_close_matches(target, ends, 3, 0) or list(ends)[:3]
            fit = " or ".join(map(repr, near))
            raise Incompatible("low_rank", need=f"a layer {target!r}", got=f"a {kind} without it", fit=fit)
    return [name for name in known if any(_fits(name, target) for target in targets)]


def _fits(name: str, target: str) -> bool:
    name = name.removesuffix(".base")  # of a layer that has adapters already
    return fnmatchcase(name, target) or fnmatchcase(name, f"*.{target}")


def merged(module: M) -> M:
    """A copy of a module in which adapters have become part of plain weights, W + (scale/rank)·B·A.

    What had no adapters is shared with the module. Weights keep their dtype, so that in half small adapters are lost.

    >>> net = low_rank(nn.Sequential(nn.Linear(3, 2)).requires_grad_(False), 1)
    >>> x = torch.ones(1, 3)
    >>> type(merged(net)[0]).__name__, torch.equal(merged(net)(x), net(x))
    ('Linear', True)
    """
    other = sharing(module)
    for parent in [*other.modules()]:
        for leaf, layer in [*parent.named_children()]:
            if isinstance(layer, LowRank):
                setattr(parent, leaf, _folded(layer))
    return other


@torch.no_grad()
def add_adapters(module: nn.Module, adapted: nn.Module) -> None:
    """Adds the adapters of a network to the plain weights of another one of its kind, in the precision of those."""
    for name, layer in adapted.named_modules():
        if isinstance(layer, LowRank):
            plain = module.get_submodule(re.sub(r"(\.base)+$", "", name))
            assert isinstance(plain, nn.Linear | nn.Conv2d)
            plain.weight += layer.delta().to(plain.weight)


@torch.no_grad()
def _folded(layer: LowRank) -> Layer:
    base = _folded(layer.base) if isinstance(layer.base, LowRank) else layer.base
    plain, weight = copy.copy(base), base.weight
    plain._parameters = dict(plain._parameters)
    wide = torch.promote_types(weight.dtype, layer.up.dtype)
    plain.weight = nn.Parameter((weight.to(wide) + layer.delta().to(wide)).to(weight.dtype), requires_grad=False)
    return plain


__all__ = ["LowRank", "adapted", "add_adapters", "check_adapters", "low_rank", "merged"]
