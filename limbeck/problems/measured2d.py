"""A mixture in the plane and a noisy linear measurement of it: a control that the teacher never heard of."""

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from limbeck.diffusion import Denoiser
from limbeck.engine.data import Batch, Drawn, Source
from limbeck.problems.networks import ResidualMLP
from limbeck.problems.problem import Generative
from limbeck.rng import Rng
from limbeck.teachers import GaussianMixture, Trained
from limbeck.tree import Tree

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class ControlledMLP(nn.Module):
    """A `ResidualMLP` that reads real numbers c beside x: its input is (x, c, 1), and (x, 0, 0) without a condition.

    Args:
        size: of x.
        controls: of c.
        width: of the residual stream.
        blocks: how many.

    >>> net = ControlledMLP(size=2, controls=1, width=16, blocks=1)
    >>> out, _ = net(torch.randn(3, 2), torch.zeros(3), torch.ones(3, 1))
    >>> out.shape
    torch.Size([3, 2])
    """

    def __init__(self, *, size: int, controls: int, width: int, blocks: int):
        super().__init__()
        self.size, self.controls = size, controls
        self.inner = ResidualMLP(shape=(size + controls + 1,), width=width, blocks=blocks)
        self.taps = self.inner.taps

    def forward(
        self, x: Tensor, level: Tensor, cond: Tree = None, *, taps: tuple[str, ...] = (), out: bool = True
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        told = x.new_zeros(len(x), self.controls) if cond is None else cond.to(x)
        known = torch.full_like(x[:, :1], float(cond is not None))
        f, features = self.inner(torch.cat([x, told, known], 1), level, taps=taps, out=out)
        return None if f is None else f[:, : self.size], features


class Measured2D(Generative):
    """x of three overlapping Gaussians, and c = A·x + s·n with n ~ N(0, 1); p(x | c) is known in closed form.

    The teacher knows p(x) exactly and nothing of c.

    >>> problem = Measured2D()
    >>> mean, cov = problem.posterior(torch.zeros(5, 1))
    >>> mean.shape, cov.shape
    (torch.Size([5, 2]), torch.Size([5, 2, 2]))
    """

    name = "measured2d"
    threads = 1
    shape = (2,)
    ratio = 2.0
    along = (0.8, 0.6)
    """A, a row of length 1."""
    std = 0.6
    """s."""

    @cached_property
    def teacher(self) -> GaussianMixture:
        means = torch.tensor([[-0.9, -0.3], [0.9, -0.3], [0.0, 0.9]])
        teacher = GaussianMixture(means=means, std=torch.tensor([0.6, 0.6, 0.5]), network=self.network)
        teacher.sigma_data = 1.0
        return teacher

    def network(self) -> Denoiser:
        return Trained(ControlledMLP(size=2, controls=1, width=64, blocks=2), sigma_data=1.0)

    @cached_property
    def source(self) -> Source:
        def make(n: int, rng: Rng) -> Batch:
            x = self.teacher.sample(n, rng)
            return {"x": x, "cond": self.measure(x) + self.std * rng.normal(n, 1)}

        return Drawn(make, fields=("x", "cond"))

    def conditions(self, n: int, rng: Rng) -> Tree:
        return self.source.take(n, rng)["cond"]

    def reference(self) -> Tensor:
        return self.teacher.sample(4096, Rng(("measured2d", "reference")))

    def measure(self, x: Tensor) -> Tensor:
        """A·x, [B, 1]."""
        return x @ x.new_tensor(self.along)[:, None]

    def agrees(self, x: Tensor, cond: Tree) -> Tensor:
        """Within 3 standard deviations of the measurement."""
        return ((self.measure(x) - cond).abs() < 3 * self.std)[:, 0]

    def posterior(self, cond: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [B, 2] and covariance [B, 2, 2] of p(x | c): a mixture of what c makes of each Gaussian.

        Component k has the gain K = Σ_k·Aᵀ/(A·Σ_k·Aᵀ + s²), the mean μ_k + K·(c − A·μ_k), the covariance
        Σ_k − K·A·Σ_k and a weight ∝ w_k·N(c; A·μ_k, A·Σ_k·Aᵀ + s²).
        """
        means, cov = self.teacher.means, self.teacher.factor @ self.teacher.factor.mT
        a = means.new_tensor(self.along)
        spread = a @ cov @ a + self.std**2  # [K]
        gain, miss = (cov @ a) / spread[:, None], cond - means @ a  # [K, 2], [B, K]
        log_w = self.teacher.logits - (miss**2 / spread + spread.log()) / 2
        weight, centre = log_w.softmax(-1), means + gain * miss[..., None]  # [B, K], [B, K, 2]
        mean = (weight[..., None] * centre).sum(1)
        away = centre - mean[:, None]
        inner = cov - gain[:, :, None] * (a @ cov)[:, None]
        return mean, torch.einsum("bk,bkij->bij", weight, inner + away[..., None] * away[..., None, :])

    shown = 1000

    def show(self, axes: "Axes", x: Tensor, cond: Tree) -> None:
        axes.scatter(*x.T, c=cond[:, 0], s=4, cmap="viridis", linewidths=0)
        axes.set(xlim=(-3, 3), ylim=(-3, 3))


def problem() -> Measured2D:
    """The problem, as the command line makes it."""
    return Measured2D()
