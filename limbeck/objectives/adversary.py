"""What a discriminator and its adversary lose: losses on its logits, and penalties on its slope at real samples."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import in_range
from limbeck.rng import Rng


def summed(values: Tensor) -> Tensor:
    """Values of one or several discriminators, [B] or [B, K], summed for each example, [B]."""
    return values.reshape(len(values), -1).sum(1)


class AdversarialLoss(ABC):
    """Losses on logits, which are high where samples look real. A subclass is a frozen keyword-only dataclass."""

    @abstractmethod
    def student(self, fake: Tensor) -> Tensor:
        """What the student loses by the logits of its samples, shape of ``fake``."""

    @abstractmethod
    def on_fake(self, fake: Tensor) -> Tensor:
        """What the discriminator loses by the logits of the student's samples, shape of ``fake``."""

    @abstractmethod
    def on_real(self, real: Tensor) -> Tensor:
        """What it loses by the logits of real data, shape of ``real``."""

    def discriminator(self, fake: Tensor, real: Tensor) -> Tensor:
        """Both together, shape of both."""
        return self.on_fake(fake) + self.on_real(real)


@dataclass(frozen=True, kw_only=True)
class NonSaturating(AdversarialLoss):
    """softplus(−D(x)) against softplus(D(x)) + softplus(−D(y)): at its optimum D is the log-ratio ln p − ln q.

    Source: Goodfellow et al. 2014, arXiv 1406.2661, sec. 3.

    >>> NonSaturating().student(torch.zeros(1))
    tensor([0.6931])
    """

    def student(self, fake: Tensor) -> Tensor:
        return F.softplus(-fake)

    def on_fake(self, fake: Tensor) -> Tensor:
        return F.softplus(fake)

    def on_real(self, real: Tensor) -> Tensor:
        return F.softplus(-real)


@dataclass(frozen=True, kw_only=True)
class Hinge(AdversarialLoss):
    """−D(x) against max(0, 1 + D(x)) + max(0, 1 − D(y)): at its optimum D is the sign of p − q.

    Source: Lim & Ye 2017, arXiv 1705.02894, eq. 5 and 6.

    >>> Hinge().discriminator(torch.tensor([-2.0, 0.5]), torch.tensor([2.0, 0.5]))
    tensor([0., 2.])
    """

    def student(self, fake: Tensor) -> Tensor:
        return -fake

    def on_fake(self, fake: Tensor) -> Tensor:
        return F.relu(1 + fake)

    def on_real(self, real: Tensor) -> Tensor:
        return F.relu(1 - real)


@dataclass(frozen=True, kw_only=True)
class Penalty(ABC):
    """A price on the discriminator's slope at real samples. A subclass is a frozen keyword-only dataclass.

    Args:
        weight: γ.
        at: by what the slope is taken: the noised samples, or the features that the heads read, which is cheaper and
            holds the heads alone.
    """

    weight: float = 1.0
    at: Literal["samples", "features"] = "samples"

    def __post_init__(self) -> None:
        in_range("weight", self.weight, 0)

    @abstractmethod
    def value(self, logits: Callable[..., Tensor], inputs: Sequence[Tensor], rng: Rng) -> Tensor:
        """The price of each example, [B].

        Args:
            logits: inputs → logits, [B] or [B, K].
            inputs: tensors [B, …].
            rng: for a penalty that is drawn.
        """

    def on(
        self, x: Tensor, look: Callable[[Tensor], Mapping[str, Tensor]], heads: Callable[..., Tensor], rng: Rng
    ) -> Tensor:
        """The price at samples or at their features, wherever it is taken, [B].

        Args:
            x: samples, [B, …].
            look: samples → features by name.
            heads: features by name → logits.
            rng: for a penalty that is drawn.
        """
        if self.at == "samples":
            return self.value(lambda x: heads(look(x)), [x], rng)
        with torch.no_grad():
            features = look(x)
        return self.value(lambda *f: heads(dict(zip(features, f, strict=True))), [*features.values()], rng)


@dataclass(frozen=True, kw_only=True)
class R1(Penalty):
    """γ/2·‖∇_y D(y)‖² at real y, summed over discriminators that are apart, exact by a second differentiation.

    Args: those of `Penalty`.

    Source: Mescheder et al. 2018, arXiv 1801.04406, eq. 9; by features as in ADD, arXiv 2311.17042, sec. 3.2.

    >>> R1(weight=2.0).value(lambda y: 3 * y[:, 0], [torch.ones(1, 2)], Rng(0)).detach()
    tensor([9.])
    """

    def value(self, logits: Callable[..., Tensor], inputs: Sequence[Tensor], rng: Rng) -> Tensor:
        leaves = [x.detach().requires_grad_() for x in inputs]
        made = logits(*leaves)
        slopes = [  # of each discriminator by itself: those of several could cancel
            slope
            for one in made.reshape(len(made), -1).unbind(1)
            for slope in torch.autograd.grad(one.sum(), leaves, create_graph=True, allow_unused=True)
            if slope is not None
        ]
        return self.weight / 2 * torch.stack([(slope**2).flatten(1).sum(1) for slope in slopes]).sum(0)


@dataclass(frozen=True, kw_only=True)
class ApproximateR1(Penalty):
    """γ·(D(y) − D(y + s·n))² with n ~ N(0, I), which is γs²·‖∇_y D(y)‖² for small s, by passes forward only.

    Args, beside those of `Penalty`:
        std: s.

    Source: Lin et al. 2025, arXiv 2501.08316, eq. 9.

    >>> still = ApproximateR1(std=0.0).value(lambda y: y[:, 0], [torch.ones(1, 2)], Rng(0))
    >>> still.item()
    0.0
    """

    std: float = 0.01

    def value(self, logits: Callable[..., Tensor], inputs: Sequence[Tensor], rng: Rng) -> Tensor:
        here = [x.detach() for x in inputs]
        there = [x + self.std * rng.normal(len(x), *x.shape[1:], dtype=x.dtype) for x in here]
        return self.weight * summed((logits(*here) - logits(*there)) ** 2)


__all__ = ["R1", "AdversarialLoss", "ApproximateR1", "Hinge", "NonSaturating", "Penalty", "summed"]
