"""Weights in the memory of the host: every operation brings those that it needs to the device, and lets them go."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes  # type: ignore[reportPrivateUsage], there is no public one
from torch.utils._pytree import tree_leaves, tree_map_only

from limbeck.errors import Incompatible

aten = torch.ops.aten


class Hosted(Tensor):
    """A frozen tensor of a device whose numbers lie in the host's memory.

    An operation on it is one on a copy, made there for it alone. What autograd saves for the backward pass is this
    tensor, not the copy, so that the weight is brought again then; and so it is where a block is computed again. Views
    and changes of precision are remembered, and made of the copy.

    Attributes:
        host: its numbers, pinned where the device is a GPU.

    >>> x = Hosted(torch.eye(2), torch.device("cpu"))
    >>> type(x.T).__name__, (x.T @ torch.ones(2)).tolist()
    ('Hosted', [1.0, 1.0])
    """

    host: Tensor

    @staticmethod
    def __new__(cls: type["Hosted"], host: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> "Hosted":
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined], which it has
            cls, host.shape, strides=host.stride(), dtype=dtype or host.dtype, device=device
        )
        made.host = host
        return made

    def __init__(self, host: Tensor, device: torch.device, dtype: torch.dtype | None = None):
        pass

    def brought(self) -> Tensor:
        """A copy of its own on the device."""
        return self.host.to(self.device, non_blocking=True, copy=True).to(self.dtype)

    def __repr__(self, **settings: Any) -> str:
        return f"Hosted({self.host!r}, device={self.device})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        made = memo[id(self)] = nn.Parameter(self.brought(), self.requires_grad)
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first, kwargs = args[0] if args else None, kwargs or {}
        if func is aten.copy_.default and isinstance(first, Hosted) and first.dtype == first.host.dtype:
            first.host.copy_(args[1].host if isinstance(args[1], Hosted) else args[1])
            return first
        if _writes(func, args, kwargs):  # lists of fused optimisers and what is given as out= included
            raise RuntimeError(f"{func} would change a weight that lies in the host's memory")
        if isinstance(first, Hosted):
            if func is aten._to_copy.default and kwargs.get("device") in (None, first.device) and "dtype" in kwargs:
                return Hosted(first.host, first.device, kwargs["dtype"])
            if func.is_view and (first.dtype == first.host.dtype or func is not aten.view.dtype):
                kept = None if func is aten.view.dtype else first.dtype
                with _disable_current_modes():  # who counts what a device holds does not count the host's
                    seen = func(first.host, *args[1:], **kwargs)
                return tree_map_only(Tensor, lambda x: Hosted(x, first.device, kept), seen)
        return func(*tree_map_only(Hosted, Hosted.brought, args), **tree_map_only(Hosted, Hosted.brought, kwargs))


def _writes(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operation writes into something that the host holds."""
    # not strict: what is told by name, or by default, is not among args
    taken = {**dict(zip((told.name for told in func._schema.arguments), args, strict=False)), **kwargs}
    told = [one.name for one in func._schema.arguments if one.alias_info and one.alias_info.is_write]
    return any(isinstance(x, Hosted) for name in told for x in tree_leaves(taken.get(name)))


def to_host(module: nn.Module, device: torch.device | None = None) -> None:
    """Moves the matrices and kernels in a module that nobody trains into the host's memory, in place for all who hold
    them; vectors, as biases are, stay.

    Args:
        module: it computes on its device as before.
        device: where it will compute; by default where each parameter is.

    Raises:
        Incompatible: a parameter that something else refers to, as recurrent networks do.

    >>> net = nn.Linear(2, 3).requires_grad_(False)
    >>> weight = net.weight
    >>> to_host(net)
    >>> net.weight is weight, type(weight).__name__, net(torch.ones(1, 2)).shape
    (True, 'Hosted', torch.Size([1, 3]))
    """
    for name, p in module.named_parameters():
        if p.requires_grad or p.dim() < 2 or isinstance(p, Hosted):
            continue
        where = device or p.device
        host = p.detach() if p.is_meta else p.detach().cpu()
        made = nn.Parameter(Hosted(host.pin_memory() if where.type == "cuda" else host, where), requires_grad=False)
        try:
            torch.utils.swap_tensors(p, made)
        except RuntimeError as error:
            got = f"{name!r}, which something else refers to"
            raise Incompatible("memory.offload", need="parameters that modules alone hold", got=got) from error


def from_host(module: nn.Module) -> None:
    """Brings what `to_host` moved back to its device, in place for all who hold it; then it can be trained and saved.

    >>> net = nn.Linear(2, 3).requires_grad_(False)
    >>> to_host(net)
    >>> from_host(net)
    >>> type(net.weight).__name__
    'Parameter'
    """
    for p in module.parameters():
        if isinstance(p, Hosted):
            torch.utils.swap_tensors(p, nn.Parameter(p.brought(), p.requires_grad))


def host_of(x: Tensor) -> Tensor:
    """Where the numbers of a tensor are: the tensor itself, or the one in the host's memory."""
    return x.host if isinstance(x, Hosted) else x


__all__ = ["Hosted", "from_host", "host_of", "to_host"]
