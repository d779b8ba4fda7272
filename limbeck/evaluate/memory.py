"""Memory of a piece of work, counted from the tensors that live: no allocator's habits, no other process."""

import gc
import weakref
from collections.abc import Callable, Iterable

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from limbeck.engine.host import Hosted, is_hosted


def peak(work: Callable[[], object], start: Iterable[Tensor] | None = None) -> int:
    """The most bytes that tensors held at one moment of the work, those that were there before it included.

    Args:
        work: what is done.
        start: the tensors that are there before it; by default all of this process.

    >>> import torch
    >>> peak(lambda: torch.zeros(100).exp().sum(), start=())  # two of 400 bytes at once
    800
    """
    held = Held(start)
    with held:
        work()
    return held.most


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of tensors, each storage once; of what lies in the host's memory, none.

    >>> import torch
    >>> x = torch.zeros(10)
    >>> size_of([x, x[:5], torch.zeros(1)])
    44
    """
    storages = {
        storage._cdata: storage for storage in (x.untyped_storage() for x in tensors if not isinstance(x, Hosted))
    }
    return sum(storage.nbytes() for storage in storages.values())


class Held(TorchDispatchMode):
    """Counts the bytes of storages from their first appearance until they are freed.

    Attributes:
        now: bytes held at this moment.
        most: bytes held at the worst moment so far.
    """

    def __init__(self, start: Iterable[Tensor] | None = None) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()
        gc.collect()
        every = gc.get_objects() if start is None else [*start]
        tensors = [item for item in every if issubclass(type(item), Tensor)]  # isinstance() would ask what warns of it
        there = {id(item.host) for item in tensors if isinstance(item, Hosted)}
        for item in tensors:
            if id(item) not in there:
                self._see(item)

    def _see(self, tensor: Tensor) -> None:
        if isinstance(tensor, Hosted):
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if is_hosted(types):  # what is brought is seen where it is
            return NotImplemented
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._see, out)
        return out


__all__ = ["Held", "peak", "size_of"]
