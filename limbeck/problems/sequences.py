"""Gaussian sequences whose next frame leans on the one before: an exact teacher that sees all frames at once."""

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.diffusion import Denoiser
from limbeck.engine.data import Batch, Drawn, Source
from limbeck.problems.networks import ResidualMLP
from limbeck.problems.problem import Generative
from limbeck.rng import Rng
from limbeck.teachers import GaussianMixture, Trained
from limbeck.tree import Tree

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class CausalMLP(nn.Module):
    """A residual MLP of which frame k reads frames ≤ k alone: what it made of earlier frames never changes.

    Weights from a later to an earlier frame do not exist, and norms stay within a frame.

    Args:
        frames: how many, of one number each.
        width: of the residual stream of a frame.
        blocks: how many.

    >>> net = CausalMLP(frames=6, width=8, blocks=1)
    >>> out, _ = net(torch.randn(3, 6), torch.zeros(3))
    >>> out.shape
    torch.Size([3, 6])
    """

    def __init__(self, *, frames: int, width: int, blocks: int):
        super().__init__()
        self.frames = frames
        self.taps = {f"block{i}": frames * width for i in range(blocks)}
        self.level = nn.Linear(1, width)
        self.inp = CausalLinear(frames, 1, width)
        self.up = nn.ModuleList(CausalLinear(frames, width, width) for _ in range(blocks))
        self.down = nn.ModuleList(CausalLinear(frames, width, width) for _ in range(blocks))
        self.out = CausalLinear(frames, width, 1)
        nn.init.zeros_(self.out.weight)

    def forward(
        self, x: Tensor, level: Tensor, cond: Tree = None, *, taps: tuple[str, ...] = (), out: bool = True
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        h, features = self.inp(x[..., None]) + self.level(level[:, None])[:, None], {}  # [B, frames, width]
        for name, up, down in zip(self.taps, self.up, self.down, strict=True):
            h = h + down(F.silu(up(F.layer_norm(h, h.shape[2:]))))
            if name in taps:
                features[name] = h.flatten(1)
        return (self.out(h)[..., 0] if out else None), features


class CausalLinear(nn.Module):
    """y_k = b_k + Σ_{j ≤ k} W_kj·x_j for x [B, frames, n], [B, frames, m].

    Args:
        frames: how many.
        n: numbers that go into each.
        m: numbers that come out of each.

    >>> linear = CausalLinear(3, 1, 2)
    >>> changed = linear(torch.tensor([[[1.0], [2.0], [3.0]]])) != linear(torch.tensor([[[1.0], [5.0], [3.0]]]))
    >>> changed[0, :, 0]
    tensor([False,  True,  True])
    """

    def __init__(self, frames: int, n: int, m: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(frames, m, frames, n) / (frames * n) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(frames, m))
        self.register_buffer("mask", torch.ones(frames, frames).tril()[:, None, :, None], persistent=False)
        self.mask: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bjn,kmjn->bkm", x, self.weight * self.mask) + self.bias


class Sequences(Generative):
    """x_1 ~ N(0, 1), x_k = ρ·x_{k−1} + √(1 − ρ²)·e_k: Gaussian with the covariance C_jk = ρ^|j−k|.

    The teacher's ODE mixes all noise into every frame. A causal generator may have the same distribution, for C = L·Lᵀ
    with a triangular L, but never the same map.

    >>> problem = Sequences()
    >>> problem.teacher_sample(torch.randn(5, 6), None).shape
    torch.Size([5, 6])
    """

    name = "sequences"
    threads = 1
    frames = 6
    rho = 0.9
    """ρ."""
    shape = (frames,)
    ratio = 3.0

    @cached_property
    def teacher(self) -> GaussianMixture:
        root = torch.linalg.cholesky(self.covariance)
        teacher = GaussianMixture(means=torch.zeros(1, self.frames), std=root[None], network=self.network)
        teacher.sigma_data = 1.0
        return teacher

    @property
    def covariance(self) -> Tensor:
        """C, [frames, frames]."""
        k = torch.arange(self.frames)
        return self.rho ** (k[:, None] - k).abs().float()

    def network(self) -> Denoiser:
        return Trained(ResidualMLP(shape=self.shape, width=64, blocks=2), sigma_data=1.0)

    def causal(self) -> Denoiser:
        """A network for students whose frame k knows nothing of the noise of later frames."""
        return Trained(CausalMLP(frames=self.frames, width=16, blocks=2), sigma_data=1.0)

    @cached_property
    def source(self) -> Source:
        def make(n: int, rng: Rng) -> Batch:
            return {"x": self.teacher.sample(n, rng)}

        return Drawn(make, fields=("x",))

    def conditions(self, n: int, rng: Rng) -> Tree:
        return None

    def reference(self) -> Tensor:
        return self.teacher.sample(4096, Rng(("sequences", "reference")))

    def agrees(self, x: Tensor, cond: Tree) -> Tensor:
        """Within the ellipsoid that holds 99.8 % of the teacher."""
        white = torch.linalg.solve_triangular(self.teacher.factor[0], x.mT, upper=False)
        return (white**2).sum(0) < 20.8

    def show(self, axes: "Axes", x: Tensor, cond: Tree) -> None:
        axes.plot(x.T, color="C0", alpha=0.2)
        axes.set(ylim=(-4, 4))


def problem() -> Sequences:
    """The problem, as the command line makes it."""
    return Sequences()
