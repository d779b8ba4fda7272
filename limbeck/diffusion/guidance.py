"""Guidance wraps a denoiser into a denoiser. Scales follow uncond + s·(cond − uncond): s = 1 is none, s = 0 uncond."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.diffusion.denoiser import Denoiser, Wrapped
from limbeck.diffusion.process import like
from limbeck.errors import BadSetting, in_range
from limbeck.rng import Rng
from limbeck.tree import Tree, tree_map


class Guidance(ABC):
    """How predictions under several conditions become one; ``guidance(denoiser)`` is again a denoiser."""

    def at(self, rng: Rng) -> "Guidance":
        """What it is in one tick; a guidance with a random setting draws it here, once for all rows and networks."""
        return self

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
    """Classifier-free guidance, x0 = x0(∅) + s·(x0(c) − x0(∅)); `Negative` has another condition in the place of ∅.

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
class RandomCFG(Guidance):
    """Classifier-free guidance whose scale s ~ U[lo, hi] is drawn anew in every tick, for all rows alike.

    Equal settings draw equal scales, so that a teacher and a critic under the same `RandomCFG` share them. Outside a
    run, where nothing is drawn, it is its mean, CFG at (lo + hi)/2, for a guided prediction is affine in s.

    Args:
        lo: the least s.
        hi: the largest s.

    Raises:
        BadSetting: hi below lo.

    Source: PG-SB of SNOOPI, Nguyen et al. 2024, arXiv 2412.02687.

    >>> [1.0 < RandomCFG(lo=1.0, hi=3.0).at(Rng(i)).scale < 3.0 for i in range(3)]
    [True, True, True]
    """

    lo: float = 1.0
    hi: float = 7.5

    def __post_init__(self) -> None:
        in_range("hi", self.hi, self.lo)

    def at(self, rng: Rng) -> CFG:
        return CFG(scale=self.lo + (self.hi - self.lo) * rng.uniform(1).item())

    def x0(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Tree) -> Tensor:
        return CFG(scale=(self.lo + self.hi) / 2).x0(denoiser, x_t, t, cond)


@dataclass(frozen=True, kw_only=True)
class NegativeAttention(Guidance):
    """One pass whose cross-attention is Z = Attn(Q, K⁺, V⁺) − a·Attn(Q, K⁻, V⁻), away from a condition n.

    The network gets the condition ``{"cond": c, "away": n, "scale": a}`` and does it in every layer; see
    `limbeck.problems.attention.CrossAttentionMLP`. Nothing is trained for it, and one-step students can use it.

    Args:
        scale: a; 0 is the plain prediction, to the bit.
        label: n, the class to stay away from; every row gets it.

    Source: NASA of SNOOPI, Nguyen et al. 2024, arXiv 2412.02687.

    >>> NegativeAttention(scale=0.5, label=2)
    NegativeAttention(scale=0.5, label=2)
    """

    scale: float = 0.5
    label: int = 0

    def x0(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Tree) -> Tensor:
        scale = x_t.new_full((len(x_t),), self.scale)
        away = torch.full((len(x_t),), self.label, device=x_t.device)
        return denoiser.denoise(x_t, t, {"cond": cond, "away": away, "scale": scale})


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
        return _away(denoiser, x_t, t, cond, _all(cond, self.label), self.scale)


@dataclass(frozen=True, kw_only=True)
class Instead(Guidance):
    """Asks for one class in the place of another, x0 = x0(c') with c' = o where c = f, and c elsewhere.

    On a teacher, under a student that is asked for f: it learns to answer with o, and forgets f.

    Args:
        label: f, the class to forget.
        other: o, the class to answer with.
        scale: s, as in `CFG`, towards c'; 1 is the plain prediction and costs one pass.

    Source: the cross-class score of SFD, Chen et al. 2024, arXiv 2409.11219.

    >>> import torch
    >>> from limbeck.teachers import GaussianMixture
    >>> teacher = GaussianMixture(means=torch.tensor([[-1.0], [1.0]]), std=0.1, labels=torch.tensor([0, 1]))
    >>> x, t, left = torch.zeros(1, 1), torch.ones(1, dtype=torch.float64), torch.tensor([0])
    >>> round(Instead(label=0, other=1)(teacher).denoise(x, t, left).item(), 2)
    0.99
    """

    label: int = 0
    other: int = 1
    scale: float = 1.0

    def x0(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Tree) -> Tensor:
        instead = tree_map(lambda c: c.masked_fill(c == self.label, self.other), cond)
        return _away(denoiser, x_t, t, instead, None, self.scale)


@dataclass(frozen=True, kw_only=True)
class PerpNeg(Guidance):
    """Perpendicular negatives, x0 = x0(∅) + s·(δ + Σ w_i·⊥(x0(n_i) − x0(∅); δ)) with δ = x0(c) − x0(∅).

    ⊥(a; δ) = a − ⟨a, δ⟩/‖δ‖²·δ for each example: a negative moves nothing along the condition's own direction, which
    a plain negative may undo. Released code lets negatives of a batch meet each other's latents; this is the formula.

    Args:
        scale: s.
        labels: the n_i; every row gets them.
        weights: the w_i, negative to stay away.

    Raises:
        BadSetting: labels and weights that are not as many.

    Source: Armandpour et al. 2023, arXiv 2304.04968.

    >>> PerpNeg(scale=2.0, labels=(0,), weights=(-1.0,))
    PerpNeg(scale=2.0, labels=(0,), weights=(-1.0,))
    """

    scale: float = 7.5
    labels: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.weights):
            raise BadSetting(f"PerpNeg needs a weight for each label, got {self.weights} for {self.labels}.")

    def x0(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Tree) -> Tensor:
        null = denoiser.denoise(x_t, t, None)
        towards = denoiser.denoise(x_t, t, cond) - null
        pull = towards
        for label, weight in zip(self.labels, self.weights, strict=True):
            negative = denoiser.denoise(x_t, t, _all(cond, label)) - null
            pull = pull + weight * perpendicular(negative, towards)
        return null + self.scale * pull


def perpendicular(vector: Tensor, to: Tensor) -> Tensor:
    """a − ⟨a, δ⟩/‖δ‖²·δ for each example; a itself where δ is zero.

    Args:
        vector: a, [B, …].
        to: δ, [B, …].

    >>> perpendicular(torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 0.0]]))
    tensor([[0., 1.]])
    """
    a, d = vector.flatten(1), to.flatten(1)
    share = (a * d).sum(1) / (d**2).sum(1).clamp_min(torch.finfo(d.dtype).tiny)
    return vector - like(share, to) * to


def _all(cond: Tree, label: int) -> Tree:
    """A condition whose every row has this label."""
    return tree_map(lambda c: c.new_full(c.shape, label), cond)


def _away(denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Tree, base: Tree, scale: float) -> Tensor:
    if scale == 1:
        return denoiser.denoise(x_t, t, cond)
    away = denoiser.denoise(x_t, t, base)
    return away if scale == 0 else away + scale * (denoiser.denoise(x_t, t, cond) - away)
