"""The one normal form of teachers, critics and student networks: (x_t, t, cond) → x0."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from limbeck.diffusion.process import Process
from limbeck.tree import Tree


class Denoiser(nn.Module, ABC):
    """Anything that predicts the clean sample, E[x0 | x_t], and knows its noise process.

    ``cond=None`` means "no condition": the denoiser knows its own null label or empty prompt.
    """

    process: Process
    sigma_data: float = 0.5
    """The data's standard deviation, which sets the scale of preconditioning and weights."""

    @abstractmethod
    def denoise(self, x_t: Tensor, t: Tensor, cond: Tree = None) -> Tensor:
        """x0, shape of x_t [B, …], at noise levels t [B] (float64); parameters are used inside ``net.__call__``."""

    def clone(self, *, trainable: bool) -> "Denoiser":
        """A copy with its own parameters, trainable or frozen: where critics and students come from."""
        return copy.deepcopy(self).requires_grad_(trainable).train(trainable)


@dataclass(frozen=True)
class Seen:
    """What one pass gave: its output, x0 or logits (None if it left early), and the features asked for, by name."""

    out: Tensor | None
    features: Mapping[str, Tensor]

    def detached(self) -> "Seen":
        """The same without gradients."""
        out = None if self.out is None else self.out.detach()
        return Seen(out, {name: value.detach() for name, value in self.features.items()})


class Featured(Denoiser):
    """A denoiser that shows its features."""

    taps: Mapping[str, int]
    """The feature maps that `look` knows, from input to output, with their numbers of channels."""

    @abstractmethod
    def look(self, x_t: Tensor, t: Tensor, cond: Tree = None, *, taps: tuple[str, ...], x0: bool = True) -> Seen:
        """x0 and features in one pass; with ``x0=False`` the pass ends at the last tap."""


class Wrapped(Denoiser):
    """A denoiser around another, sharing its process and parameters: guidance, caching, scaling."""

    def __init__(self, inner: Denoiser):
        super().__init__()
        self.inner = inner
        self.process, self.sigma_data = inner.process, inner.sigma_data

    def denoise(self, x_t: Tensor, t: Tensor, cond: Tree = None) -> Tensor:
        return self.inner.denoise(x_t, t, cond)

    def clone(self, *, trainable: bool) -> Denoiser:
        other = copy.copy(self)
        other._modules = {"inner": self.inner.clone(trainable=trainable)}
        return other
