"""Functional maps between stretched chains: matrices that say how the modes of one shape read in those of another."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.diffusion import Denoiser
from limbeck.engine.data import Dataset, Source
from limbeck.problems.networks import ResidualMLP
from limbeck.problems.problem import Generative
from limbeck.rng import Rng
from limbeck.teachers import GaussianMixture, Trained
from limbeck.tree import Tree

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS, MODES = 40, 6


@dataclass(frozen=True)
class Pairs:
    """Pairs of shapes of n points whose i-th points correspond.

    Args:
        basis: the first K modes of both shapes, Φ and Ψ, orthonormal, [2, P, n, K].
        levels: their eigenvalues, [2, P, K].
    """

    basis: Tensor
    levels: Tensor

    @property
    def maps(self) -> Tensor:
        """C = Ψᵀ·Φ, [P, K, K]: a function with coefficients a on the first shape has C·a on the second."""
        return self.basis[1].mT @ self.basis[0]

    def errors(self, maps: Tensor) -> Tensor:
        """How far from the true point each map sends a point, as a share of the chain; mean over points, [P].

        A point of the second shape goes to that of the first whose modes are nearest: rows of Ψ·C against those of Φ.
        """
        found = torch.cdist(self.basis[1] @ maps, self.basis[0]).argmin(-1)  # [P, n]
        return (found - torch.arange(POINTS)).abs().double().mean(1) / POINTS


def pairs(n: int, rng: Rng) -> Pairs:
    """n pairs of chains, each stretched and squeezed along its length at random: ln w = Σ_j c_j·cos(πj·u)/j.

    The modes are those of the graph's Laplacian, and positive at the chain's first point, which fixes their signs.

    >>> made = pairs(3, Rng(0))
    >>> made.maps.shape, made.errors(made.maps).max().item() < 0.02
    (torch.Size([3, 6, 6]), True)
    """
    u, j = (torch.arange(POINTS - 1) + 0.5) / (POINTS - 1), torch.arange(1, 5)
    waves = torch.cos(torch.pi * j[:, None] * u) / j[:, None]
    weights = (0.8 * rng.normal(2 * n, len(j)) @ waves).exp().double()  # [2n, edges]
    degree = F.pad(weights, (0, 1)) + F.pad(weights, (1, 0))
    laplacian = degree.diag_embed() - weights.diag_embed(1) - weights.diag_embed(-1)
    levels, modes = torch.linalg.eigh(laplacian)
    modes = modes * modes[:, :1].sign()
    return Pairs(
        modes[..., :MODES].reshape(2, n, POINTS, MODES).float(), levels[:, :MODES].reshape(2, n, MODES).float()
    )


class FunctionalMaps(Generative):
    """Clean functional maps, flattened, and the Gaussian that is fitted to 2 000 of them as the teacher.

    >>> problem = FunctionalMaps()
    >>> problem.teacher_sample(torch.randn(5, 36), None).shape
    torch.Size([5, 36])
    """

    name = "functional-maps"
    threads = 1
    shape = (MODES * MODES,)
    particles = 64
    shown = 20

    @cached_property
    def seen(self) -> Tensor:
        """The maps that the teacher knows, [2000, 36]."""
        return pairs(2000, Rng(("functional maps", "seen"))).maps.flatten(1)

    @cached_property
    def held_out(self) -> Pairs:
        """Pairs that it does not."""
        return pairs(self.particles, Rng(("functional maps", "held out")))

    @cached_property
    def teacher(self) -> GaussianMixture:
        factor = torch.linalg.cholesky(self.seen.mT.cov() + 1e-4 * torch.eye(self.seen.shape[1]))
        return GaussianMixture(means=self.seen.mean(0, keepdim=True), std=factor[None], network=self.network)

    def network(self) -> Denoiser:
        return Trained(ResidualMLP(shape=self.shape, width=64, blocks=2))

    @cached_property
    def source(self) -> Source:
        return Dataset(x=self.seen)

    def conditions(self, n: int, rng: Rng) -> Tree:
        return None

    def reference(self) -> Tensor:
        return pairs(2000, Rng(("functional maps", "reference"))).maps.flatten(1)

    def agrees(self, x: Tensor, cond: Tree) -> Tensor:
        """Nearly a rotation, ‖CᵀC − I‖² < K/2, which holds for 99 % of the clean ones."""
        c = x.unflatten(1, (MODES, MODES))
        return (c.mT @ c - torch.eye(MODES)).square().sum((1, 2)) < MODES / 2

    def show(self, axes: "Axes", x: Tensor, cond: Tree) -> None:
        tiles = F.pad(x[:20].unflatten(1, (MODES, MODES)), (1, 1, 1, 1), value=torch.nan)
        tiles = torch.cat([tiles, tiles.new_full((-len(tiles) % 5, *tiles.shape[1:]), torch.nan)]).unflatten(0, (-1, 5))
        axes.imshow(tiles.permute(0, 2, 1, 3).flatten(0, 1).flatten(1), cmap="RdBu", vmin=-1, vmax=1)


def problem() -> FunctionalMaps:
    """The problem, as the command line makes it."""
    return FunctionalMaps()
