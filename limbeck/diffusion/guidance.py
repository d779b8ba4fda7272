"""Guidance wraps a denoiser into a denoiser. Scales follow uncond + s·(cond − uncond): s = 1 is none, s = 0 uncond."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from limbeck.diffusion.denoiser import Denoiser, Wrapped
from limbeck.tree import Tree, tree_map


class Guidance(ABC):
    """How predictions under several conditions become one; ``guidance(denoiser)`` is again a denoiser."""

    @abstractmethod
    def x0(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Tree) -> Tensor:
        """The guided x0, shape of x_t."""

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        return Guided(denoiser, self)


class Guided(Wrapped):
    """A denoiser under a guidance."""

    def __init__(self, inner: Denoiser, guidance: Guidance):
        super().__init__(inner)
        self.guidance = guidance

    def denoise(self, x_t: Tensor, t: Tensor, cond: Tree = None) -> Tensor:
        return self.guidance.x0(self.inner, x_t, t, cond)

    def clone(self, *, trainable: bool) -> Denoiser:
        """A frozen copy stays guided; what learns, a critic or a student, is the plain network."""
        return self.inner.clone(trainable=True) if trainable else super().clone(trainable=False)


@dataclass(frozen=True, kw_only=True)
class CFG(Guidance):
    """Classifier-free guidance, x0 = x0(∅) + s·(x0(c) − x0(∅)); against a negative condition if one is given.

    In x0, ε and score the same s gives the same guidance, since each is affine in the others.

    Args:
        scale: s; 1 is the plain conditional prediction and costs one pass.

    Source: Ho & Salimans 2022, arXiv 2207.12598, eq. 6, with s = 1 + w.

    >>> import torch
    >>> from limbeck.teachers import GaussianMixture
    >>> teacher = GaussianMixture(means=torch.tensor([[-1.0], [1.0]]), std=0.1, labels=torch.tensor([0, 1]))
    >>> x, t, right = torch.zeros(1, 1), torch.tensor([1.0], dtype=torch.float64), torch.tensor([1])
    >>> [round(CFG(scale=s)(teacher).denoise(x, t, right).item(), 2) for s in (0.0, 1.0, 2.0)]
    [0.0, 0.99, 1.98]
    """

    scale: float = 7.5

    def x0(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Tree) -> Tensor:
        return _away(denoiser, x_t, t, cond, None, self.scale)


@dataclass(frozen=True, kw_only=True)
class Negative(Guidance):
    """Guidance away from a condition, x0 = x0(n) + s·(x0(c) − x0(n)).

    Args:
        scale: s; 1 is the plain conditional prediction.
        label: the class to stay away from; every row gets it.

    Source: the negative prompt of Stable Diffusion's samplers; CFG's formula with n in the place of ∅.

    >>> import torch
    >>> from limbeck.teachers import GaussianMixture
    >>> teacher = GaussianMixture(means=torch.tensor([[-1.0], [1.0]]), std=0.1, labels=torch.tensor([0, 1]))
    >>> x, t, right = torch.zeros(1, 1), torch.tensor([1.0], dtype=torch.float64), torch.tensor([1])
    >>> round(Negative(scale=2.0, label=0)(teacher).denoise(x, t, right).item(), 2)
    2.97
    """

    scale: float = 7.5
    label: int = 0

    def x0(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Tree) -> Tensor:
        return _away(denoiser, x_t, t, cond, tree_map(lambda c: c.new_full(c.shape, self.label), cond), self.scale)


def _away(denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Tree, base: Tree, scale: float) -> Tensor:
    if scale == 1:
        return denoiser.denoise(x_t, t, cond)
    away = denoiser.denoise(x_t, t, base)
    return away if scale == 0 else away + scale * (denoiser.denoise(x_t, t, cond) - away)
