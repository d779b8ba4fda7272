"""How a role learns: optimisers and moving averages as frozen settings; the loop owns the state."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.engine.schedule import Schedule, value_at
from limbeck.engine.shards import in_full, is_shard
from limbeck.errors import BadSetting, Incompatible, in_range


@dataclass(frozen=True, kw_only=True)
class Optim(ABC):
    """How one role learns. The learning rate is a pure function of the tick.

    Args:
        lr: learning rate, before schedule and scale.
        schedule: factor on ``lr`` over the run.
        clip: largest norm of the role's gradient; None leaves it as it is.
        scale: (glob of parameter names, factor on ``lr``) pairs; the first that matches counts.
    """

    lr: float = 1e-3
    schedule: float | Schedule = 1.0
    clip: float | None = None
    scale: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        in_range("lr", self.lr, 0)
        if self.clip is not None:
            in_range("clip", self.clip, 0)

    def rate(self, name: str, progress: float) -> float:
        """The learning rate of a parameter at this progress.

        >>> Adam(lr=0.1, scale=(("*.bias", 0.5),)).rate("net.bias", 0.0)
        0.05
        """
        return self.lr * self.factor(name) * value_at(self.schedule, progress)

    def factor(self, name: str) -> float:
        """What ``scale`` makes of a parameter's learning rate."""
        return next((factor for glob, factor in self.scale if fnmatchcase(name, glob)), 1.0)

    @abstractmethod
    def build(self, groups: Iterable[dict[str, Any]]) -> torch.optim.Optimizer:
        """The torch optimiser over parameter groups."""


@dataclass(frozen=True, kw_only=True)
class Adam(Optim):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2).

    Args, beside those of `Optim`:
        betas, eps, weight_decay: as in the paper.
        bits: of each moment. Those of 8 bits are bitsandbytes' (Dettmers et al. 2022, arXiv 2110.02861, sec. 2): by
            blocks, each with its largest value; parameters of fewer than 4 096 numbers keep theirs whole.

    Raises:
        Incompatible: 8 bits without bitsandbytes, or for parameters in shards, where the optimiser is made.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    bits: Literal[8, 32] = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits not in (8, 32):
            raise BadSetting(f"bits must be 8 or 32, got {self.bits}.")

    def build(self, groups: Iterable[dict[str, Any]]) -> torch.optim.Optimizer:
        if self.bits == 8:
            return eight_bits()(_in_one_piece([*groups]), self.lr, self.betas, self.eps, weight_decay=self.weight_decay)
        return torch.optim.AdamW(groups, self.lr, self.betas, self.eps, weight_decay=self.weight_decay, fused=True)


@dataclass(frozen=True, kw_only=True)
class RAdam(Optim):
    """Adam with a rectified early step (Liu et al. 2020, arXiv 1908.03265, algorithm 2)."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def build(self, groups: Iterable[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.RAdam(groups, self.lr, self.betas, self.eps)


@dataclass(frozen=True, kw_only=True)
class SGD(Optim):
    """Stochastic gradient descent, with momentum if wanted."""

    momentum: float = 0.0
    weight_decay: float = 0.0

    def build(self, groups: Iterable[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, self.lr, self.momentum, weight_decay=self.weight_decay)


@dataclass(frozen=True, kw_only=True)
class EMA:
    """A moving average of parameters, θ̄ ← d·θ̄ + (1 − d)·θ after every step of θ, with d ≤ (1 + n)/(10 + n) early on.

    >>> [round(EMA(decay=0.9).at(n), 3) for n in (0, 10, 1000)]
    [0.1, 0.55, 0.9]
    """

    decay: float = 0.999
    ramp: bool = True

    def __post_init__(self) -> None:
        in_range("decay", self.decay, 0, 1)

    def at(self, n: int) -> float:
        """d at the n-th update."""
        return min(self.decay, (1 + n) / (10 + n)) if self.ramp else self.decay


def eight_bits() -> Any:
    """Adam with moments of 8 bits, a class of bitsandbytes.

    Raises:
        Incompatible: it is not installed.
    """
    try:
        from bitsandbytes.optim import AdamW8bit  # type: ignore[reportMissingImports], which few need
    except ImportError:
        fit = "pip install 'limbeck[bitsandbytes]', or bits=32,"
        raise Incompatible("Adam(bits=8)", need="bitsandbytes", got="none installed", fit=fit) from None
    return AdamW8bit


def _in_one_piece(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if any(is_shard(p) for group in groups for p in group["params"]):
        raise Incompatible("Adam(bits=8)", need="parameters in one piece", got="shards", fit="shard=False")
    return groups


def gradient_norm(params: Iterable[Tensor]) -> Tensor:
    """‖(g₁, g₂, …)‖₂ over the parameters that have a gradient, []."""
    grads = [p.grad for p in params if p.grad is not None]
    kinds = [[grad for grad in grads if is_shard(grad) == kind] for kind in (False, True)]
    norms = [in_full(torch.nn.utils.get_total_norm(kind)) for kind in kinds if kind]
    return torch.stack(norms).norm() if len(norms) > 1 else norms[0] if norms else torch.zeros(())
