"""A trained network as a teacher, critic or student: preconditioning around any network that shows its features."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from safetensors.torch import load_file
from torch import Tensor, nn

from limbeck.diffusion.denoiser import Featured, Seen
from limbeck.diffusion.process import EDM, Process, like
from limbeck.errors import BadFile
from limbeck.tree import Tree


class Network(Protocol):
    """What `Trained` asks of its network, an ``nn.Module``."""

    taps: Mapping[str, int]

    def __call__(
        self, x: Tensor, level: Tensor, cond: Tree, *, taps: tuple[str, ...], out: bool
    ) -> tuple[Tensor | None, Mapping[str, Tensor]]:
        """(output, features by name) for x [B, …] and noise condition [B]; stops at the last tap if not ``out``."""
        ...


class Trained(Featured):
    """x0 = (s²α/n²)·x_t + (σs/n)·F(x_t/n, ln(σ/α)/4, cond), n² = σ² + s²α², s = σ_data.

    For α = 1 this is EDM's c_skip, c_out and c_in; F sees and gives unit variance if s is the data's.

    Args:
        net: F; see `Network`.
        sigma_data: the data's standard deviation.
        process: the noise process; the same network serves all of them, for it only sees σ̄.

    Source: EDM, arXiv 2206.00364, table 1 and eq. 7.

    >>> import torch
    >>> from limbeck.problems.networks import ResidualMLP
    >>> teacher = Trained(ResidualMLP(shape=(2,), width=16, blocks=1))
    >>> teacher.denoise(torch.randn(4, 2), torch.ones(4, dtype=torch.float64)).shape
    torch.Size([4, 2])
    """

    def __init__(self, net: nn.Module, *, sigma_data: float = 0.5, process: Process | None = None):
        super().__init__()
        self.net, self.sigma_data, self.process = net, sigma_data, process or EDM()
        self.taps: Mapping[str, int] = net.taps  # type: ignore[assignment]

    def denoise(self, x_t: Tensor, t: Tensor, cond: Tree = None) -> Tensor:
        x0 = self.look(x_t, t, cond, taps=()).out
        assert x0 is not None
        return x0

    def look(self, x_t: Tensor, t: Tensor, cond: Tree = None, *, taps: tuple[str, ...], x0: bool = True) -> Seen:
        alpha, sigma, s = self.process.alpha(t), self.process.sigma(t), self.sigma_data
        n = (sigma**2 + (s * alpha) ** 2).sqrt()
        level = (sigma / alpha).clamp_max(1e4).log() / 4  # a process may end in pure noise, where α = 0
        f, features = self.net(like(1 / n, x_t) * x_t, level.to(x_t), cond, taps=taps, out=x0)
        if f is None:
            return Seen(None, features)
        return Seen(like(s**2 * alpha / n**2, x_t) * x_t + like(sigma * s / n, x_t) * f, features)

    def load(self, path: str | Path) -> "Trained":
        """Weights from a safetensors file, every name matched; returns itself."""
        self.load_state_dict(read_tensors(path))
        return self


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; nothing is ever unpickled.

    Raises:
        BadFile: if it is missing or not a whole safetensors file.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise BadFile(f"{path} does not exist.") from None
    except Exception as error:  # safetensors raises its own untyped errors for damage of every kind
        raise BadFile(f"{path} is not a whole safetensors file: {error}.") from None


def denoising_weight(t: Tensor, process: Process, sigma_data: float = 0.5) -> Tensor:
    """w(σ̄) = (σ̄² + s²)/(σ̄·s)², which gives F's error unit weight at every level, [B] (EDM, eq. 144).

    >>> import torch
    >>> denoising_weight(torch.tensor([0.5], dtype=torch.float64), EDM())
    tensor([8.], dtype=torch.float64)
    """
    ratio = process.ratio(t)
    return (ratio**2 + sigma_data**2) / (ratio * sigma_data) ** 2
