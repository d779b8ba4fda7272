"""Two views of one digit: which place of the one shows what this place of the other shows?"""

from functools import cached_property

import torch
from torch import Tensor, nn

from limbeck.engine.data import Batch, Dataset, Drawn, Source
from limbeck.problems.digits import Jitter, split
from limbeck.problems.digits_vit import DigitsViT
from limbeck.problems.problem import Problem
from limbeck.rng import Rng

NOWHERE = -1
"""The match of a place that shows no ink, or whose match is outside."""

VIEWS = Jitter(shift=1.0, turn=25.0, scale=0.15, noise=0.1)


def centres(side: int = 8) -> Tensor:
    """Where pixels are on the grid from −1 to 1, x before y, row by row, [side², 2].

    >>> centres(2).tolist()
    [[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]]
    """
    along = (torch.arange(side) + 0.5) * 2 / side - 1
    return torch.stack([along.repeat(side), along.repeat_interleave(side)], 1)


def moved_to(one: Tensor, other: Tensor, side: int = 8) -> Tensor:
    """Where each pixel of one view is in another: v with A'v + b' = A·u + b, on the grid from −1 to 1, [B, side², 2].

    Args:
        one: (A, b), which show at u what the image has at A·u + b, [B, 2, 3].
        other: (A', b'), [B, 2, 3].
        side: pixels of a row.

    >>> same = torch.eye(2, 3)[None]
    >>> torch.equal(moved_to(same, same)[0], centres())
    True
    """
    u = centres(side).to(one)
    shown = u @ one[:, :, :2].mT + one[:, None, :, 2]
    return torch.linalg.solve(other[:, :, :2], (shown - other[:, None, :, 2]).mT).mT


def matches(where: Tensor, ink: Tensor, side: int = 8) -> Tensor:
    """The pixel in which each place lies, or `NOWHERE` without ink or outside, [B, N] integers.

    Args:
        where: places on the grid from −1 to 1, [B, N, 2].
        ink: whether there is any, boolean [B, N].
        side: pixels of a row.

    >>> matches(torch.tensor([[[-0.5, 0.5], [0.5, 3.0]]]), torch.ones(1, 2).bool(), side=2)
    tensor([[ 2, -1]])
    """
    cell = ((where + 1) * side / 2).floor().long()
    inside = ((cell >= 0) & (cell < side)).all(-1)
    return torch.where(inside & ink, cell[..., 1] * side + cell[..., 0], NOWHERE)


def pairs(x: Tensor, rng: Rng) -> Batch:
    """Two views of each image, fields x and pair, and the ``match`` [B, 64] of pixels of the first in the second."""
    one, other = VIEWS.draw(x, rng), VIEWS.draw(x, rng)
    first, second = (VIEWS.replay(x, view) for view in (one, other))
    where = moved_to(one["affine"], other["affine"], x.shape[-1])
    return {"x": first, "pair": second, "match": matches(where, first.flatten(1) > 0, x.shape[-1])}


class Places(nn.Module):
    """A vector for each pixel: convolutions in a row, the image keeps its size.

    Args:
        width: channels.
        layers: how many.

    >>> Places(width=4)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 4, 8, 8])
    """

    def __init__(self, *, width: int = 16, layers: int = 4):
        super().__init__()
        parts: list[nn.Module] = []
        for k in range(layers - 1):
            parts += [nn.Conv2d(width if k else 1, width, 3, padding=1), nn.GELU()]
        self.convs = nn.Sequential(*parts, nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, H, W] of images [B, 1, H, W]."""
        return self.convs(x)


class DigitsMatches(Problem):
    """Fields x and pair, two views of one image, and ``match``: which pixel of the second shows what each of x shows.

    Views are moved by known affine maps, so that matches are known; ``train`` is one pair of each of a few images.

    >>> {name: list(x.shape) for name, x in DigitsMatches().source.take(3, Rng(0)).items()}
    {'x': [3, 1, 8, 8], 'pair': [3, 1, 8, 8], 'match': [3, 64]}
    """

    name = "digits-matches"
    threads = 1

    def __init__(self, images: int = 5) -> None:
        x, _, heldout, _ = split()
        self.images, few = x, x[Rng((self.name,)).uniform(len(x)).argsort()[:images]]
        self.train, self.heldout = (pairs(x, Rng((self.name, k))) for k, x in enumerate((few, heldout)))

    @cached_property
    def teacher(self) -> nn.Module:
        """A vision transformer that was trained to classify digits, and knows nothing of matches."""
        return DigitsViT().teacher

    @cached_property
    def source(self) -> Source:
        """The few pairs whose matches are known."""
        return Dataset(**self.train)

    @cached_property
    def unlabelled(self) -> Source:
        """Fresh pairs of all images, without matches."""
        x = self.images

        def make(n: int, rng: Rng) -> Batch:
            made = pairs(x[rng.integers(n, len(x))], rng)
            return {"x": made["x"], "pair": made["pair"]}

        return Drawn(make, fields=("x", "pair"))

    def network(self) -> Places:
        return Places()

    def missed(self, found: Tensor, within: float = 1.0) -> float:
        """Share of held-out places whose found match [B, 64] is further than so many pixels from the right pixel."""
        match, places = self.heldout["match"], 4 * centres()
        apart = (places[found] - places[match.clamp_min(0)]).norm(dim=-1)
        return (apart > within + 1e-4)[match != NOWHERE].double().mean().item()


def problem() -> DigitsMatches:
    """The problem, as the command line makes it."""
    return DigitsMatches()
