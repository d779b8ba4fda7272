"""Memory for precision and for time: frozen weights in half, activations that the backward pass computes again."""

from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, TypeVar

import torch
from torch import is_grad_enabled, nn
from torch.utils.checkpoint import checkpoint

from limbeck.engine.host import Hosted, to_host
from limbeck.engine.shards import called
from limbeck.engine.taps import find, submodules
from limbeck.errors import Incompatible

M = TypeVar("M", bound=nn.Module)
Half = Literal["bf16", "fp16"]
WHOLE = "whole"
"""The word for a student whose samples are made again."""
HALF: dict[str | None, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """How a network of a run lies in memory; it is changed itself, not a copy, and a teacher stays so after the run.

    Args:
        frozen: what parameters are kept in that nobody trains, and what the network then computes in; None leaves them.
            What is trained is kept in single precision.
        again: blocks that the backward pass computes again, by name or glob as in `checkpointed`; ``auto`` for those
            that a network of diffusers chooses for itself; ``whole`` for a student's samples altogether, which are made
            again where their gradient comes through another network (as a GAN's does), when that has let its memory go.
            By default ``whole`` where a student learns adapters on weights of a teacher; elsewhere, as ``()``, none.
        offload: whether what nobody trains lies in the memory of the host, from where every layer brings its weights
            when it runs, in the backward pass too; see `to_host`. It costs their way to the device in every pass, and
            lasts until `limbeck.engine.from_host`.

    >>> net = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2))
    >>> Memory(frozen="bf16").put(net)
    >>> [p.dtype for p in net.parameters()][1:3], net(torch.zeros(1, 2)).dtype
    ([torch.bfloat16, torch.float32], torch.bfloat16)
    """

    frozen: Half | None = None
    again: tuple[str, ...] | None = None
    offload: bool = False

    def put(self, module: nn.Module) -> None:
        """Makes a network lie so, in place: whoever else holds its frozen parameters sees the same.

        Raises:
            Incompatible: no such blocks; see `checkpointed`.
        """
        for root in called(module):  # a copy brings the precision of what it is a copy of
            root.__class__ = getattr(type(root), "plain", type(root))
        again = self.again or ()
        if names := [name for name in again if name not in ("auto", WHOLE)]:
            checkpointed(module, *names)
        if "auto" in again:
            checkpointed(module)
        self.lay(module)
        dtype = HALF.get(self.frozen)
        for root in called(module) if dtype else ():
            root.__class__ = _within(type(root), dtype)

    def lay(self, module: nn.Module, device: torch.device | None = None) -> None:
        """Its parameters alone, in their precision, in the memory of the host or the device; see `to_host`."""
        dtype = HALF.get(self.frozen)
        # running statistics are in single precision, and what stands beside them must be too
        watching = (part for part in module.modules() if getattr(part, "running_mean", None) is not None)
        beside = {id(p) for part in watching for p in part.parameters(recurse=False)}
        for p in (p for p in module.parameters() if not isinstance(p, Hosted)):
            if p.requires_grad and p.dtype in HALF.values():
                p.data = p.data.float()
            elif dtype and not p.requires_grad and p.is_floating_point() and id(p) not in beside:
                p.data = p.data.to(dtype)
        if self.offload:
            to_host(module, device)


def chooses(module: nn.Module) -> list[nn.Module]:
    """The networks in a module that know which of their blocks to compute again."""
    return [part for part in module.modules() if getattr(part, "_supports_gradient_checkpointing", False)]


@cache
def _within(kind: type[nn.Module], dtype: torch.dtype) -> type[nn.Module]:
    """A kind of module that computes in a precision, and is this kind in all else."""

    def forward(self: nn.Module, *args: Any, **inputs: Any) -> Any:
        with torch.autocast(next(self.parameters()).device.type, dtype):
            return kind.forward(self, *args, **inputs)

    return type(kind.__name__, (kind,), {"forward": forward, "plain": kind, "__module__": kind.__module__})


def checkpointed(module: M, *blocks: str) -> M:
    """Has submodules keep their inputs alone: the backward pass computes again what is inside. Returns the module.

    Values, gradients and the names of parameters stay as they are, and so does a pass without gradients.

    Args:
        module: changed in place; copies that are made of it later do the same.
        blocks: submodules by name or glob as in `tap`, such as ``net.blocks.*``. By default those that a network of
            diffusers in it chooses for itself.

    Raises:
        Incompatible: no such submodule, one with running statistics, or no network that chooses for itself.

    Source: Chen et al. 2016, arXiv 1604.06174, sec. 3.

    >>> net = checkpointed(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "0")
    >>> [name for name, _ in net.named_parameters()], isinstance(net[0], nn.Linear)
    (['0.weight', '0.bias'], True)
    """
    if not blocks:
        if not (own := chooses(module)):
            need, got = "a network of diffusers that can, or names of blocks", f"a {type(module).__name__} alone"
            raise Incompatible("checkpointed", need=need, got=got, fit='checkpointed(module, "net.blocks.*")')
        for part in own:
            part.enable_gradient_checkpointing()  # type: ignore[operator], which they all have
    known = submodules(module)
    for name in find(module, *blocks, by="checkpointed"):
        if name not in known:
            raise Incompatible("checkpointed", need="a submodule", got=f"{name!r}")
        part = known[name]
        if any(getattr(inner, "running_mean", None) is not None for inner in part.modules()):
            got = f"{name!r} with running statistics, in which every batch would count twice"
            raise Incompatible("checkpointed", need="a submodule whose passes leave no trace", got=got)
        part.__class__ = _again(type(part))  # what it is called, and with which hooks, stays as it is
    return module


@cache
def _again(kind: type[nn.Module]) -> type[nn.Module]:
    """A kind of module that is this kind in all else."""
    if getattr(kind, "again", False):
        return kind

    def forward(self: nn.Module, *args: Any, **inputs: Any) -> Any:
        once = partial(kind.forward, self, **inputs)
        return checkpoint(once, *args, use_reentrant=False) if is_grad_enabled() else once(*args)

    return type(kind.__name__, (kind,), {"forward": forward, "again": True, "__module__": kind.__module__})


__all__ = ["HALF", "WHOLE", "Half", "Memory", "checkpointed", "chooses"]
