"""LumiNet's perception: each class is seen against the batch, before teacher and student are compared."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from limbeck.engine.tick import Tick
from limbeck.errors import above_zero
from limbeck.objectives.networks.logits import OnLogits, soft_kl


def perceived(logits: Tensor, *, eps: float = 1e-5) -> Tensor:
    """(z_ic − mean_i z_ic)/√(var_i z_ic + eps): each class has mean 0 and variance 1 over the batch, [B, C].

    Args:
        logits: z, [B, C].
        eps: added to the variances, which divide by B.

    Source: LumiNet, Hossain et al. 2023, arXiv 2310.03669.

    >>> import torch
    >>> perceived(torch.tensor([[0.0, 5.0], [2.0, 9.0]]))
    tensor([[-1.0000, -1.0000],
            [ 1.0000,  1.0000]])
    """
    centred = logits - logits.mean(0)
    return centred / (centred.square().mean(0) + eps).sqrt()


@dataclass(frozen=True, kw_only=True)
class LumiNet(OnLogits):
    """T²·KL between softmax(h_t/T) and softmax(h_s/T) of `perceived` logits h, mean over the batch.

    Args:
        temperature: T.

    Raises:
        BadSetting: a temperature that is not above 0.
        Incompatible: no teacher, no inputs x, a batch that is cut.

    Source: Hossain et al. 2023, arXiv 2310.03669; in the released code a free weight is in the place of T².

    >>> import torch
    >>> from torch import nn
    >>> from limbeck import Dataset, distill
    >>> data = Dataset(x=torch.randn(9, 4))
    >>> sorted(next(iter(distill(nn.Linear(4, 3), nn.Linear(4, 3), LumiNet(), data, steps=1, batch=8))).losses)
    ['luminet']
    """

    coupled: ClassVar[bool] = True
    temperature: float = 4.0

    def __post_init__(self) -> None:
        above_zero("temperature", self.temperature)

    def value(self, student: Tensor, teacher: Tensor, tick: Tick) -> Tensor:
        return soft_kl(perceived(student), perceived(teacher), temperature=self.temperature).mean()


__all__ = ["LumiNet", "perceived"]
