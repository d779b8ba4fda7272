"""Low-rank adapters: a trainable copy of a network that shares the network's frozen weights."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import Incompatible, in_range

M = TypeVar("M", bound=nn.Module)


class LowRank(nn.Module):
    """y = Wx + b + (scale/rank)·B(Ax) around a frozen linear layer; B starts at 0, so y starts as it was.

    Args:
        base: the frozen layer, shared with whoever owns it.
        rank: of A and B.
        scale: of the adapter; equal to the rank for a factor of 1.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float):
        super().__init__()
        self.base, self.factor = base, scale / rank
        self.down = nn.Parameter(torch.empty(rank, base.in_features).to(base.weight))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank).to(base.weight))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.factor * F.linear(F.linear(x, self.down), self.up)


def low_rank(module: M, rank: int, *, scale: float | None = None) -> M:
    """A copy of a module whose linear layers carry trainable adapters; everything else is shared and frozen.

    The copy holds the module's own parameters, not copies of them: memory grows by the adapters alone. Buffers, such as
    running statistics, are its own.

    Args:
        module: its parameters must be frozen, for they stay as they are.
        rank: r of the adapters B·A, at least 1.
        scale: α; the adapters are multiplied by α/r. By default α = r.

    Raises:
        Incompatible: a module without linear layers.
        BadSetting: a rank below 1.

    Source: Hu et al. 2021, arXiv 2106.09685, sec. 4.1.

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).requires_grad_(False)
    >>> copy = low_rank(net, 2)
    >>> copy[0].base.weight is net[0].weight, [n for n, p in copy.named_parameters() if p.requires_grad][:2]
    (True, ['0.down', '0.up'])
    """
    in_range("rank", rank, 1)
    other = copy.deepcopy(module, {id(p): p for p in module.parameters()})
    places = [
        (parent, name, layer)
        for parent in [*other.modules()]
        for name, layer in parent.named_children()
        if isinstance(layer, nn.Linear)
    ]
    if not places:
        raise Incompatible("low_rank", need="a network with linear layers", got=f"a {type(module).__name__}")
    for parent, name, layer in places:
        setattr(parent, name, LowRank(layer, rank, scale or rank))
    return other
