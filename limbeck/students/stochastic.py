"""A few-step generator whose sampler is more or less random, and which trains for all of it."""

import torch
from torch import Tensor

from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.process import Process, like
from limbeck.diffusion.samplers import start
from limbeck.engine.student import Draw
from limbeck.errors import in_range
from limbeck.rng import Rng
from limbeck.students.generator import FewStep
from limbeck.tree import Tree


def renoised(process: Process, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor, eta: Tensor, z: Tensor) -> Tensor:
    """x_s = α_s·x0 + σ_s·(√(1 − η²)·ε + η·z) with ε = (x_t − α_t·x0)/σ_t: DDIM for η = 0, fresh noise for η = 1.

    Args:
        process: the noise process.
        x0: the prediction, [B, …].
        x_t: what it was made from, [B, …].
        t: its noise level, [B].
        s: the next noise level, [B].
        eta: η, [B].
        z: standard normal noise, [B, …].

    >>> from limbeck.diffusion import EDM
    >>> t, s = torch.tensor([4.0], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)
    >>> x0, x_t, z, one = torch.zeros(1, 1), torch.full((1, 1), 2.0), torch.ones(1, 1), torch.ones(1)
    >>> [renoised(EDM(), x0, x_t, t, s, eta * one, z).item() for eta in (0, 1)]
    [0.5, 1.0]
    """
    eps = process.convert(x0, x_t, t, "x0", "eps")
    return process.add_noise(x0, like((1 - eta**2).sqrt(), x0) * eps + like(eta, x0) * z, s)


class RandomEta(FewStep):
    """A few-step generator that keeps some of its noise from step to step, `renoised` with η.

    In training η ~ U[0, 1] for every sample and step, so that steps see the inputs of many samplers and cannot
    settle on the quirks of one; samples are drawn with the η of inference.

    Args:
        denoiser: a trainable network; a clone of the teacher is the usual start.
        ratios: noise levels σ/α of the steps, from the noisiest down.
        shape: of one sample.
        eta: η of inference; 1 is `FewStep`, 0 the DDIM sampler.

    Raises:
        BadSetting: ratios that do not decrease, η outside [0, 1].

    Source: the random-η sampling of R0, Luo et al. 2025, arXiv 2503.13070.

    >>> from limbeck.teachers import GaussianMixture
    >>> denoiser = GaussianMixture(means=torch.zeros(1, 2)).clone(trainable=True)
    >>> RandomEta(denoiser, ratios=(80.0, 5.0), shape=(2,)).draw(3, None, Rng(0)).x.shape
    torch.Size([3, 2])
    """

    def __init__(self, denoiser: Denoiser, *, ratios: tuple[float, ...], shape: tuple[int, ...], eta: float = 1.0):
        super().__init__(denoiser, ratios=ratios, shape=shape)
        in_range("eta", eta, 0, 1)
        self.eta = eta

    def draw(self, n: int, cond: Tree, rng: Rng) -> Draw:
        noise, times, k = self._noise(n, rng), self.times, rng.integer(len(self.ratios))
        with torch.no_grad():
            x = self._walk(noise, cond, rng, k, None)
        x0 = self.denoiser.denoise(x, times[k].expand(n), cond)
        return Draw(x0, cond, noise, (float(times[k + 1]), float(times[k])))

    @torch.no_grad()
    def generate(self, noise: Tensor, cond: Tree, rng: Rng) -> Tensor:
        last = len(self.ratios) - 1
        x = self._walk(noise, cond, rng, last, self.eta)
        return self.denoiser.denoise(x, self.times[last].expand(len(noise)), cond)

    def _walk(self, noise: Tensor, cond: Tree, rng: Rng, k: int, eta: float | None) -> Tensor:
        """The input of step k, from standard normal noise; η is drawn where it is None."""
        n, times = len(noise), self.times
        x = start(noise, times, self.process)
        for i in range(k):
            t, s = times[i].expand(n), times[i + 1].expand(n)
            now = rng.uniform(n) if eta is None else torch.full_like(t, eta)
            z = rng.normal(n, *self.shape, dtype=noise.dtype)
            x = renoised(self.process, self.denoiser.denoise(x, t, cond), x, t, s, now, z)
        return x
