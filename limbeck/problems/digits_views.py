"""Tomography of digits: an image from few views of it, where a teacher has seen more of them."""

from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.engine.data import Batch, Drawn, Source
from limbeck.problems.digits import jitter, split
from limbeck.problems.problem import Problem
from limbeck.rng import Rng, seeded


def projections(views: int, side: int = 8) -> Tensor:
    """The matrix of so many parallel views at equal angles of images side × side, [views·side, side²].

    A view is the sums along the rows of the image turned by its angle, bilinearly.

    >>> projections(2).shape
    torch.Size([16, 64])
    """
    unit = torch.eye(side * side, dtype=torch.float64).view(-1, 1, side, side)
    rows = list[Tensor]()
    for angle in torch.arange(views, dtype=torch.float64) * torch.pi / views:
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
        grid = F.affine_grid(F.pad(turn, (0, 1)).expand(len(unit), 2, 3), list(unit.shape), align_corners=False)
        rows.append(F.grid_sample(unit, grid, align_corners=False).sum(3).flatten(1))
    return torch.cat(rows, 1).T


def reconstruction(views: int, side: int = 8) -> Tensor:
    """The least-squares reconstruction from `projections` after them, [side², side²], singular values under 5 % cut."""
    seen = projections(views, side)
    return (torch.linalg.pinv(seen, rtol=0.05) @ seen).float()


class Fourier(nn.Module):
    """A mix of channels of the real Fourier transform: every place of what comes out sees the whole image."""

    def __init__(self, width: int):
        super().__init__()
        self.mix = nn.Sequential(nn.Conv2d(2 * width, 2 * width, 1), nn.GELU(), nn.Conv2d(2 * width, 2 * width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Maps, [B, C, H, W]."""
        z = torch.fft.rfft2(x, norm="ortho")
        real, imaginary = self.mix(torch.cat([z.real, z.imag], 1)).chunk(2, 1)
        return torch.fft.irfft2(torch.complex(real, imaginary), s=x.shape[2:], norm="ortho")


class Restorer(nn.Module):
    """An image from a poor one: an ``encoder`` with a `Fourier` mix, a decoder that adds what is missing.

    Args:
        width: channels.

    >>> Restorer(width=4)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(self, *, width: int = 16):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.GELU(), Fourier(width))
        self.decoder = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, 1, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The image, [B, 1, H, W]."""
        return x + self.decoder(self.encoder(x))


class DigitsViews(Problem):
    """Fields x: digits as three views show them, pair: as six do, y: as they are; a hundred images to learn from.

    >>> {name: list(x.shape) for name, x in DigitsViews().source.take(3, Rng(0)).items()}
    {'x': [3, 1, 8, 8], 'pair': [3, 1, 8, 8], 'y': [3, 1, 8, 8]}
    """

    name = "digits-views"
    threads = 1

    def __init__(self, images: int = 100, views: tuple[int, int] = (3, 6)) -> None:
        x, _, heldout, _ = split()
        self.train = x[Rng((self.name,)).uniform(len(x)).argsort()[:images]]
        self.poor, self.better = (reconstruction(n) for n in views)
        self.heldout = seen_through(self.poor, heldout), heldout

    @cached_property
    def teacher(self) -> nn.Module:
        """The network before training: who knows is made by the recipe, of what more views show."""
        with seeded(self.name):
            return self.network()

    @cached_property
    def source(self) -> Source:
        def make(n: int, rng: Rng) -> Batch:
            y = jitter(self.train[rng.integers(n, len(self.train))], rng, noise=0.0)
            return {"x": seen_through(self.poor, y), "pair": seen_through(self.better, y), "y": y}

        return Drawn(make, fields=("x", "pair", "y"))

    def network(self) -> Restorer:
        return Restorer()

    @torch.no_grad()
    def error(self, model: nn.Module) -> float:
        """Mean square of what is missing from held-out images."""
        x, y = self.heldout
        return F.mse_loss(model(x), y).item()


def seen_through(matrix: Tensor, x: Tensor) -> Tensor:
    """Images [B, 1, H, W] after a linear map of their pixels."""
    return (x.flatten(1) @ matrix.T).view_as(x)


def problem() -> DigitsViews:
    """The problem, as the command line makes it."""
    return DigitsViews()
