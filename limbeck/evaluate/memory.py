"""Memory of a piece of work, counted from the tensors that live: no allocator's habits, no other process."""

import gc
import weakref
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch._guards import active_fake_mode
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass_type
from torch.utils._pytree import tree_map_only

from limbeck.engine.host import Hosted
from limbeck.engine.shards import part_of


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
    """Bytes of the storages of tensors, each storage once: of shards this process's parts, of the host's memory none.

    >>> import torch
    >>> x = torch.zeros(10)
    >>> size_of([x, x[:5], torch.zeros(1)])
    44
    """
    every = (part_of(x).untyped_storage() for x in tensors if not isinstance(x, Hosted))
    storages = {storage._cdata: storage for storage in every}
    return sum(storage.nbytes() for storage in storages.values())


class Held(TorchDispatchMode):
    """Counts the bytes of storages from their first appearance until they are freed, or made smaller, as FSDP does.

    Attributes:
        now: bytes held at this moment.
        most: bytes held at the worst moment so far.
    """

    def __init__(self, start: Iterable[Tensor] | None = None) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: dict[int, int] = {}
        self._mode = active_fake_mode()
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
        tensor = part_of(tensor)
        if isinstance(tensor, FakeTensor) and tensor.fake_mode is not self._mode:  # shapes that shards work out ahead
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known[key] = 0
            self._holds(key, storage.nbytes())
            weakref.finalize(storage, self._free, key)

    def _holds(self, key: int, size: int) -> None:
        self.now += size - self._known[key]
        self._known[key] = size
        self.most = max(self.most, self.now)

    def _free(self, key: int) -> None:
        self.now -= self._known.pop(key)

    def __enter__(self) -> "Held":
        resize = self._resize = torch.UntypedStorage.resize_  # no operation that a mode would see

        def resized(storage: torch.UntypedStorage, size: int) -> object:
            out = resize(storage, size)
            if storage._cdata in self._known:
                self._holds(storage._cdata, size)
            return out

        torch.UntypedStorage.resize_ = resized  # type: ignore[method-assign], as a mode cannot see it
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign], as it was
        super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if elsewhere(types):
            return NotImplemented
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._see, out)
        return out


def elsewhere(types: Iterable[type]) -> bool:
    """Whether an operation is on shards or on what the host holds: a mode leaves it to them, and then sees it where it
    happens, on this process's parts and on what was brought.
    """
    return any(issubclass(kind, Hosted) or is_traceable_wrapper_subclass_type(kind) for kind in types)


__all__ = ["Held", "elsewhere", "peak", "size_of"]
