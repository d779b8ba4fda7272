"""Memory for time: activations that the backward pass computes again."""

from functools import cache, partial
from typing import Any, TypeVar

from torch import is_grad_enabled, nn
from torch.utils.checkpoint import checkpoint

from limbeck.engine.taps import find, submodules
from limbeck.errors import Incompatible

M = TypeVar("M", bound=nn.Module)


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
        own = [part for part in module.modules() if getattr(part, "_supports_gradient_checkpointing", False)]
        if not own:
            need, got = "a network of diffusers that can, or names of blocks", f"a {type(module).__name__} alone"
            raise Incompatible("checkpointed", need=need, got=got, fit='checkpointed(module, "net.blocks.*")')
        for part in own:
            part.enable_gradient_checkpointing()  # type: ignore[operator]
    known = submodules(module)
    for name in find(module, *blocks):
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


__all__ = ["checkpointed"]
