"""A run without values: its ticks go through the same loop and compute shapes alone, so any size can be planned."""

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from limbeck.engine.host import Hosted, host_of
from limbeck.engine.loop import Run
from limbeck.engine.shards import is_shard, part_like, part_of
from limbeck.errors import Incompatible
from limbeck.evaluate.memory import elsewhere

KNOWN = 256
"""So many numbers that follow from a program's own, as the noise levels of a sampler do, keep their values."""

READS = torch.ops.aten._local_scalar_dense.default
CHOICE = torch.ops.aten.randint.generator  # of a number below its first argument


@contextmanager
def hollow(run: Run) -> Generator["Reads"]:
    """Inside, the tensors of a run have shapes and no values; after it, they are as before, without moments.

    Parameters on the meta device count as the processor's, so that a network can be planned whose weights nobody has.
    A run in shards must not have had a tick before, and has none after: FSDP keeps to the parameters it began with.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes: dict[int, tuple[Tensor, Tensor]] = {}
    changed = [_swap(module, mode, fakes) for module in _modules(run)]
    kept = dict(run.cast.kept)
    run.cast.kept.update({name: _fake(x, mode, fakes) for name, x in kept.items() if isinstance(x, Tensor)})
    device, run.device = run.device, torch.device("cpu")
    _bind(run)
    fakes.clear()  # nothing but the run holds them
    reads, limit = Reads(), fake_tensor.CONSTANT_NUMEL_LIMIT
    try:
        fake_tensor.CONSTANT_NUMEL_LIMIT = KNOWN
        with mode, reads, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # FSDP asks if it is the same
            yield reads
    finally:
        fake_tensor.CONSTANT_NUMEL_LIMIT = limit
        for owner, name, value in (one for part in changed for one in part):
            owner[name] = value
        run.cast.kept.update(kept)
        run.device = device
        _bind(run)


class Reads(TorchDispatchMode):
    """What a program reads out of tensors without values: a number drawn at random alone is drawn; a real number, as a
    loss or a norm is, is 1; and others are for choices, which cannot be made.

    Attributes:
        drawn: whether some number was drawn, so that another tick may take another way.
    """

    drawn = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if elsewhere(types):
            return NotImplemented
        kwargs = kwargs or {}
        if func is READS and isinstance(args[0], FakeTensor) and args[0].constant is None:
            if not args[0].is_floating_point():
                raise Incompatible("a tick without values", need="ways that no value decides", got="a choice by one")
            return 1.0
        out: Any = func(*args, **kwargs)
        if kwargs.get("generator") is not None and isinstance(out, FakeTensor) and prod(out.shape) == 1:
            with _disable_current_modes():
                out.constant = func(*args, **kwargs)
            self.drawn |= func is not CHOICE or args[0] > 1
        return out


def _modules(run: Run) -> list[nn.Module]:
    cast = run.cast
    kept = [value for value in cast.kept.values() if isinstance(value, nn.Module)]
    learners = [one.module for one in (*cast.roles.values(), *cast.targets.values())]
    return [*cast.teachers.values(), *learners, *kept]


def _bind(run: Run) -> None:
    for one in (*run.cast.roles.values(), *run.cast.targets.values()):
        one.bind()


def _swap(
    module: nn.Module, mode: FakeTensorMode, fakes: dict[int, tuple[Tensor, Tensor]]
) -> list[tuple[Any, str, Tensor]]:
    """Puts tensors without values into a module; returns where the others were."""
    changed: list[tuple[Any, str, Tensor]] = []
    for part in module.modules():
        for owner in (vars(part)["_parameters"], vars(part)["_buffers"]):
            for name, value in owner.items():
                if value is not None and not isinstance(host_of(value), FakeTensor):
                    changed.append((owner, name, value))
                    owner[name] = _fake(value, mode, fakes)
    return changed


def _fake(x: Tensor, mode: FakeTensorMode, fakes: dict[int, tuple[Tensor, Tensor]]) -> Tensor:
    """A tensor without values of the same shape, or a shard of one; the same one for the same tensor."""
    if id(x) not in fakes:
        part = part_of(x.detach())
        with mode:
            made: Tensor = torch.empty_strided(part.shape, part.stride(), dtype=x.dtype, device="cpu")
            if is_shard(x):
                made = part_like(made, x)
            if isinstance(x, Hosted):
                made = Hosted(made, torch.device("cpu"))
            if isinstance(x, nn.Parameter):
                made = nn.Parameter(made, requires_grad=x.requires_grad)
        fakes[id(x)] = x, made
    return fakes[id(x)][1]


__all__ = ["Reads", "hollow"]
