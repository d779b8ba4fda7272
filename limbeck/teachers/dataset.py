"""The diffused data set: real data with a score that is exact without training."""

import math

import torch
from torch import Tensor

from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.process import EDM, Process, like
from limbeck.errors import BadSetting
from limbeck.tree import Tree


class ExactDataset(Denoiser):
    """E[x0 | x_t] over N training examples: x0 = Σ_i softmax_i(−‖x_t − αx_i‖² / 2σ²)·x_i.

    It is the minimiser of the denoising loss, and it memorises: use it to check mathematics, not for new samples.

    Args:
        x: the examples, [N, …].
        labels: their classes, [N]; a condition then is a tensor of labels [B].
        process: the noise process.

    Source: EDM, arXiv 2206.00364, appendix B.3, eq. 57.

    >>> teacher = ExactDataset(torch.tensor([[-1.0], [1.0]]))
    >>> teacher.denoise(torch.tensor([[0.0]]), torch.tensor([1.0], dtype=torch.float64))
    tensor([[0.]])
    """

    def __init__(self, x: Tensor, *, labels: Tensor | None = None, process: Process | None = None):
        super().__init__()
        if labels is not None and len(labels) != len(x):
            raise BadSetting(f"labels must be {len(x)}, one for each example, got {len(labels)}.")
        self.process = process or EDM()
        self.register_buffer("x", x.clone())
        self.register_buffer("labels", labels)
        self.x: Tensor
        self.labels: Tensor | None

    def _log_joint(self, x_t: Tensor, t: Tensor, cond: Tree) -> Tensor:
        """ln N(x_t; αx_i, σ²I) + ln w_i, [B, N]; in float64, since it is a small difference of large squares."""
        data, noisy = self.x.flatten(1).double(), x_t.flatten(1).double()
        alpha, sigma = (like(level, noisy) for level in (self.process.alpha(t), self.process.sigma(t)))  # [B, 1]
        square = (noisy**2).sum(1, keepdim=True) - 2 * alpha * noisy @ data.T + alpha**2 * (data**2).sum(1)
        log_p = -square / (2 * sigma**2) - data.shape[1] * (sigma.log() + math.log(2 * math.pi) / 2)
        if cond is None or self.labels is None:
            return log_p - math.log(len(data))
        same = self.labels == cond[:, None]
        return log_p.masked_fill(~same, -math.inf) - same.sum(1, keepdim=True).log()

    def denoise(self, x_t: Tensor, t: Tensor, cond: Tree = None) -> Tensor:
        with torch.autocast(x_t.device.type, enabled=False):  # exact, whatever the networks around it run in
            x0 = self._log_joint(x_t, t, cond).softmax(1) @ self.x.flatten(1).double()
        return x0.reshape(x_t.shape).to(x_t)

    def log_prob(self, x_t: Tensor, t: Tensor, cond: Tree = None) -> Tensor:
        """ln p_t(x_t), [B]."""
        return torch.logsumexp(self._log_joint(x_t, t, cond), 1).to(x_t)
