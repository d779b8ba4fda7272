"""Several classifiers as one."""

import math

import torch
from torch import Tensor, nn

from limbeck.errors import BadSetting, Incompatible


class Ensemble(nn.Module):
    """ln of the mean of the members' probabilities, ln (1/K)·Σ_k softmax(z_k): logits whose softmax is the average.

    Args:
        members: networks from inputs to logits z [B, C].

    Raises:
        BadSetting: no members.
        Incompatible: members of different numbers of classes, when first asked.

    Source: the target of MEAL V2, Shen & Savvides 2020, arXiv 2009.08453.

    >>> pair = Ensemble(nn.Identity(), nn.Identity())
    >>> pair(torch.tensor([[1.0, 1.0]])).exp()
    tensor([[0.5000, 0.5000]])
    """

    def __init__(self, *members: nn.Module):
        super().__init__()
        if not members:
            raise BadSetting("Ensemble needs at least one member, got none.")
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities [B, C] of inputs [B, …]."""
        each = [member(x) for member in self.members]
        if len({out.shape for out in each}) > 1:
            got = " and ".join(str(out.shape[-1]) for out in each)
            raise Incompatible("Ensemble", need="members with the same classes", got=got)
        return torch.stack([out.log_softmax(-1) for out in each]).logsumexp(0) - math.log(len(each))


__all__ = ["Ensemble"]
