"""A Gaussian mixture: the teacher whose density, score and denoiser are exact at every noise level."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.process import EDM, Process, like
from limbeck.errors import BadSetting
from limbeck.rng import Rng
from limbeck.tree import Tree


class GaussianMixture(Denoiser):
    """p(x0) = Σ_k w_k·N(x0; μ_k, L_k·L_kᵀ), class-conditional if its components carry labels.

    E[x0 | x_t] = Σ_k r_k·(μ_k + α·Σ_k·(α²Σ_k + σ²I)⁻¹·(x_t − αμ_k)), r_k ∝ w_k·N(x_t; αμ_k, α²Σ_k + σ²I).

    A trainable clone is a mixture with trainable means, covariances and weights, which can represent any student
    distribution of that family; or the network that ``network`` makes, where features or capacity are wanted.

    Args:
        means: μ, [K, D].
        std: one standard deviation, one for each component [K], or factors L [K, D, D].
        weights: w, [K], positive, sum 1; uniform by default.
        labels: the class of each component, [K] integers; a condition then is a tensor of labels [B].
        process: the noise process.
        network: makes the network that trainable clones are; by default they are mixtures.

    Raises:
        BadSetting: shapes that do not fit.

    >>> teacher = GaussianMixture(means=torch.tensor([[-2.0], [2.0]]), std=0.5)
    >>> x_t, t = torch.tensor([[2.0]]), torch.tensor([0.5], dtype=torch.float64)
    >>> teacher.denoise(x_t, t)
    tensor([[2.0000]])
    """

    def __init__(
        self,
        *,
        means: Tensor,
        std: float | Tensor = 1.0,
        weights: Tensor | None = None,
        labels: Tensor | None = None,
        process: Process | None = None,
        network: Callable[[], Denoiser] | None = None,
    ):
        super().__init__()
        if means.dim() != 2:
            raise BadSetting(f"means must have shape [K, D], got {list(means.shape)}.")
        k, d = means.shape
        self.process, self.network = process or EDM(), network
        scale = torch.as_tensor(std, dtype=means.dtype)
        factor = scale if scale.dim() == 3 else scale.expand(k)[:, None, None] * torch.eye(d, dtype=means.dtype)
        if factor.shape != (k, d, d):
            raise BadSetting(f"std must be a number, [{k}] or [{k}, {d}, {d}], got {list(factor.shape)}.")
        weights = torch.full((k,), 1 / k, dtype=means.dtype) if weights is None else weights.to(means)
        if weights.shape != (k,) or not bool((weights > 0).all()):
            raise BadSetting(f"weights must be {k} positive numbers, got {weights.tolist()}.")
        self.means = nn.Parameter(means.clone(), requires_grad=False)
        self.factor = nn.Parameter(factor.clone(), requires_grad=False)
        self.logits = nn.Parameter((weights / weights.sum()).log(), requires_grad=False)
        self.register_buffer("labels", labels)
        self.labels: Tensor | None

    def clone(self, *, trainable: bool) -> Denoiser:
        if trainable and self.network is not None:
            return self.network()
        return super().clone(trainable=trainable)

    def denoise(self, x_t: Tensor, t: Tensor, cond: Tree = None) -> Tensor:
        with torch.autocast(x_t.device.type, enabled=False):  # exact, whatever the networks around it run in
            log_r, shift = self._components(x_t, t, cond)
        return (log_r.softmax(-1)[..., None] * shift).sum(1)

    def log_prob(self, x_t: Tensor, t: Tensor, cond: Tree = None) -> Tensor:
        """ln p_t(x_t), [B]."""
        return self._components(x_t, t, cond)[0].logsumexp(-1)

    def _components(self, x_t: Tensor, t: Tensor, cond: Tree) -> tuple[Tensor, Tensor]:
        """ln w_k·N(x_t; αμ_k, α²Σ_k + σ²I), [B, K], and each component's E[x0 | x_t, k], [B, K, D]."""
        d = self.means.shape[1]
        alpha, sigma = (like(level, x_t) for level in (self.process.alpha(t), self.process.sigma(t)))  # [B, 1]
        cov = self.factor @ self.factor.mT  # [K, D, D]
        eye = torch.eye(d, dtype=x_t.dtype, device=x_t.device)
        noisy = alpha[..., None, None] ** 2 * cov + sigma[..., None, None] ** 2 * eye  # [B, K, D, D]
        root = torch.linalg.cholesky(noisy)
        away = (x_t[:, None] - alpha[..., None] * self.means)[..., None]  # [B, K, D, 1]
        white = torch.linalg.solve_triangular(root, away, upper=False)
        log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # [B, K]
        log_n = -(white**2).sum((-1, -2)) / 2 - log_det - d * math.log(2 * math.pi) / 2
        pulled = torch.linalg.solve_triangular(root.mT, white, upper=True)  # (α²Σ + σ²I)⁻¹·away
        shift = self.means + (alpha[..., None, None] * (cov @ pulled))[..., 0]
        return log_n + self._log_weights(cond), shift

    def _log_weights(self, cond: Tree) -> Tensor:
        """ln w_k, given the class if there is one; [K] or [B, K]."""
        if cond is None or self.labels is None:
            return self.logits.log_softmax(-1)
        other = self.labels != cond[:, None]
        return self.logits.expand(other.shape).masked_fill(other, -math.inf).log_softmax(-1)

    def sample(self, n: int, rng: Rng, cond: Tree = None) -> Tensor:
        """n exact samples of the data distribution, [n, D].

        >>> GaussianMixture(means=torch.zeros(3, 2)).sample(5, Rng(0)).shape
        torch.Size([5, 2])
        """
        cdf = self._log_weights(cond).exp().cumsum(-1).expand(n, -1)
        k = (rng.uniform(n, 1, dtype=cdf.dtype) > cdf).sum(-1).clamp_max(len(self.means) - 1)
        eps = rng.normal(n, self.means.shape[1], dtype=self.means.dtype)
        return self.means[k] + (self.factor[k] @ eps[..., None])[..., 0]
