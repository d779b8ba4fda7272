"""A layer as a sum of small experts, of which each token takes as many as it needs."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import in_range


class AdditiveExperts(nn.Module):
    """out_k(x) = Σ_{i ≤ k} expert_i(x) for a k that a gate chooses for each token, 1 ≤ k ≤ N.

    While it trains, the gate's choice has Gumbel noise; forward it is hard and backward soft, so that the gate learns
    from what its experts did. Without ``gated`` all experts count. All experts run here; sums alone are conditional.

    Args:
        width: of tokens, [..., width].
        experts: N.
        hidden: of each expert.
        temperature: of the gate's choice.

    Source: Wójcik et al. 2023, arXiv 2312.10193.

    >>> layer = AdditiveExperts(8, experts=4, hidden=3)
    >>> layer(torch.zeros(5, 8)).shape, layer.partial(torch.zeros(5, 8)).shape
    (torch.Size([5, 8]), torch.Size([4, 5, 8]))
    """

    def __init__(self, width: int, *, experts: int, hidden: int, temperature: float = 1.0):
        super().__init__()
        in_range("experts", experts, 1)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)) for _ in range(experts)
        )
        self.gate = nn.Sequential(nn.Linear(width, 2 * experts), nn.GELU(), nn.Linear(2 * experts, experts))
        self.gated, self.temperature = False, temperature

    def partial(self, x: Tensor) -> Tensor:
        """out_k for every k, [N, ..., width]."""
        return torch.stack([expert(x) for expert in self.experts]).cumsum(0)

    def choice(self, x: Tensor) -> Tensor:
        """Which k each token takes, as a 1 among N, [..., N]; with noise and a soft gradient while it trains."""
        z = self.gate(x)
        if self.training:
            return F.gumbel_softmax(z, tau=self.temperature, hard=True)
        return F.one_hot(z.argmax(-1), len(self.experts)).to(z)

    def used(self, choice: Tensor) -> Tensor:
        """The share of experts that tokens took, of their choices [..., N]; [...]."""
        n = choice.shape[-1]
        return choice @ (torch.arange(1, n + 1, dtype=choice.dtype, device=choice.device) / n)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, [..., width]."""
        if not self.gated:
            return self.partial(x)[-1]
        return mixed(self.partial(x), self.choice(x))


def mixed(partial: Tensor, choice: Tensor) -> Tensor:
    """Σ_k choice_k·out_k, of partial sums [N, ..., D] and choices [..., N]; [..., D].

    >>> mixed(torch.tensor([[[1.0]], [[3.0]]]), torch.tensor([[0.0, 1.0]]))
    tensor([[3.]])
    """
    return (choice.movedim(-1, 0)[..., None] * partial).sum(0)


__all__ = ["AdditiveExperts", "mixed"]
