"""Digits under textures that do not matter: pictures of two things, of which a student is to learn one."""

from torch import Tensor, nn

from limbeck.engine.data import Batch, Drawn, Source
from limbeck.problems.digits import jitter
from limbeck.rng import Rng

TEXTURES = 10


def textured(x: Tensor, which: Tensor, rng: Rng) -> Tensor:
    """x + a·pattern, with a between 0.5 and 1.5, and for each texture one fixed pattern of −1 and 1.

    Args:
        x: images, [B, 1, H, W].
        which: texture of each, [B].
        rng: draws a.

    >>> import torch
    >>> x = torch.zeros(2, 1, 8, 8)
    >>> strength = textured(x, torch.tensor([0, 3]), Rng(0)).abs().flatten(1)
    >>> bool((strength == strength[:, :1]).all()), bool((0.5 <= strength).all() and (strength < 1.5).all())
    (True, True)
    """
    patterns = Rng(("textures",)).normal(TEXTURES, *x.shape[1:]).sign().to(x)
    return x + (0.5 + rng.uniform(len(x), dtype=x.dtype))[:, None, None, None] * patterns[which]


def pictures(x: Tensor, y: Tensor, *, named: bool) -> Source:
    """Moved digits under random textures; the label is that of the digit or, if textures are named, 10·digit + texture.

    >>> import torch
    >>> x, y = torch.zeros(4, 1, 8, 8), torch.full((4,), 7)
    >>> [pictures(x, y, named=named).take(3, Rng(0))["y"].tolist() for named in (False, True)]
    [[7, 7, 7], [70, 73, 79]]
    """

    def make(n: int, rng: Rng) -> Batch:
        rows, which = rng.integers(n, len(x)), rng.integers(n, TEXTURES)
        return {"x": textured(jitter(x[rows], rng), which, rng), "y": TEXTURES * y[rows] + which if named else y[rows]}

    return Drawn(make, fields=("x", "y"))


class WhateverTexture(nn.Module):
    """What a network that names digit and texture says of the digit: log Σ exp over textures.

    Args:
        both: images → logits of 10·digit + texture, [B, 10·C].

    >>> import torch
    >>> both = nn.Linear(1, 20)
    >>> said = WhateverTexture(both)(x := torch.ones(3, 1)).softmax(1)
    >>> torch.testing.assert_close(said, both(x).softmax(1).view(3, 2, TEXTURES).sum(2))
    """

    def __init__(self, both: nn.Module):
        super().__init__()
        self.both = both

    def forward(self, x: Tensor) -> Tensor:
        """Logits of digits, [B, C]."""
        return self.both(x).unflatten(1, (-1, TEXTURES)).logsumexp(2)


__all__ = ["TEXTURES", "WhateverTexture", "pictures", "textured"]
