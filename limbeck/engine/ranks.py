"""Several processes as one run: who writes, where they wait for each other, and what they agree on."""

import os
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from limbeck.engine.host import host_of
from limbeck.errors import Failed

T = TypeVar("T")

GONE = "another process of this run has ended; start all of them again with --resume."
"""What is said where a process waits in vain."""


@contextmanager
def together() -> Generator[None]:
    """Inside, the processes that ``torchrun`` started are one run: over NCCL where there are GPUs, else over gloo.

    A process that was not started so is alone, and nothing changes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # others wait while the first one writes a cache or judges a result, however long that takes
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(days=7))
    try:
        yield
    finally:
        dist.destroy_process_group()


def leads() -> bool:
    """Whether this process writes and speaks for all.

    >>> leads()
    True
    """
    return not dist.is_initialized() or dist.get_rank() == 0


def several() -> bool:
    """Whether this run is of more than one process.

    >>> several()
    False
    """
    return dist.is_initialized() and dist.get_world_size() > 1


def meet() -> None:
    """Waits until every process is here."""
    if dist.is_initialized():
        exchanged(dist.barrier)


def summed(x: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if hasattr(x, "full_tensor"):  # a shard, in which FSDP has left the mean over processes
        return x.mul_(dist.get_world_size())
    if dist.is_initialized():
        exchanged(lambda: dist.all_reduce(x))
    return x


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether some process says so; the same answer for all."""
    return bool(summed(torch.tensor(float(flag), device=device))) if dist.is_initialized() else flag


@torch.no_grad()
def as_the_first(tensors: Iterable[Tensor]) -> None:
    """Every process gets the values that the first one has."""
    if dist.is_initialized():
        for x in tensors:
            if hasattr(x, "full_tensor"):  # a shard, which no other process has
                continue
            x = host_of(x)
            whole = x.detach().contiguous()
            exchanged(lambda whole=whole: dist.broadcast(whole, 0))
            x.data.copy_(whole)


def exchanged(exchange: Callable[[], T]) -> T:
    """What an exchange with the other processes gives.

    Raises:
        Failed: one of them is gone.
    """
    try:
        return exchange()
    except RuntimeError as error:
        if "out of memory" in str(error):  # of this process
            raise
        raise Failed(GONE) from error


__all__ = ["GONE", "any_of", "as_the_first", "exchanged", "leads", "meet", "several", "summed", "together"]
