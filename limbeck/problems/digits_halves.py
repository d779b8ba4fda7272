"""Digits without labels, cut in halves: which of them belong together?"""

from functools import cached_property

import torch
from torch import Tensor, nn

from limbeck.engine.data import Batch, Drawn, Source
from limbeck.problems.digits import jitter, load_judge, split
from limbeck.problems.problem import Problem
from limbeck.rng import Rng


class ResidualTower(nn.Module):
    """Perceptrons in a row, each added to what it reads: x ← x + MLP(norm(x)), of one width, so that it can end early.

    Args:
        size: numbers of an input.
        width: of the stream.
        blocks: how many.

    >>> ResidualTower(size=64, width=16, blocks=2)(torch.zeros(3, 1, 8, 8)).shape
    torch.Size([3, 16])
    """

    def __init__(self, *, size: int, width: int = 64, blocks: int = 6):
        super().__init__()
        self.stem = nn.Linear(size, width)
        self.blocks = nn.Sequential(*(_Add(width) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        """The stream at its end, [B, width], of inputs [B, …]."""
        return self.blocks(self.stem(x.flatten(1)))


class _Add(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


class DigitsHalves(Problem):
    """Which right half of a digit belongs to this left half: batches of both, fields x and pair, the other half blank.

    >>> batch = DigitsHalves().source.take(5, Rng(0))
    >>> bool((batch["x"][..., 4:] == -1).all()), bool((batch["pair"][..., :4] == -1).all())
    (True, True)
    """

    name = "digits-halves"
    threads = 1

    def __init__(self) -> None:
        self.unlabelled, _, heldout, y = split()
        self.heldout = heldout, y

    @cached_property
    def teacher(self) -> nn.Module:
        """The digits' classifier, which nobody asks: an encoder is its own teacher."""
        return load_judge()

    @cached_property
    def source(self) -> Source:
        x = self.unlabelled

        def make(n: int, rng: Rng) -> Batch:
            left, right = halves(jitter(x[rng.integers(n, len(x))], rng))
            return {"x": left, "pair": right}

        return Drawn(make, fields=("x", "pair"))

    def network(self) -> nn.Module:
        return ResidualTower(size=64, width=64, blocks=6)


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Images [B, 1, H, W] with −1 in the place of the right half, and of the left."""
    column = torch.arange(x.shape[3], device=x.device)
    left = column < x.shape[3] // 2
    return torch.where(left, x, -1.0), torch.where(left, -1.0, x)


def problem() -> DigitsHalves:
    """The problem, as the command line makes it."""
    return DigitsHalves()
