"""A denoiser's network that is told what it has seen itself: a feature of its middle conditions all later blocks."""

from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import BadSetting
from limbeck.problems.networks import ResidualMLP


class SelfConditioned(ResidualMLP):
    """A `ResidualMLP` whose blocks after one are modulated by e + W·norm(h) in place of e, h what that one put out.

    W is zero at first, so that the network is the plain one of the same parameters until it learns otherwise.

    Args: those of `ResidualMLP`.
        at: the tap after which the feature is fed back.

    Raises:
        BadSetting: no such tap, or none after it.

    Source: DDAE++, Xiang et al. 2025, arXiv 2505.10999, for the idea; there features of several places are pooled.

    >>> import torch
    >>> net = SelfConditioned(at="block1", shape=(2,), width=16, blocks=4)
    >>> net(torch.randn(3, 2), torch.zeros(3))[0].shape
    torch.Size([3, 2])
    """

    def __init__(
        self,
        *,
        at: str,
        shape: tuple[int, ...],
        classes: int = 0,
        width: int = 192,
        blocks: int = 4,
        expand: int = 3,
    ):
        super().__init__(shape=shape, classes=classes, width=width, blocks=blocks, expand=expand)
        if at not in [*self.taps][:-1]:
            raise BadSetting(f"at needs a block before the last, one of {', '.join([*self.taps][:-1])}, got {at!r}.")
        self.at, self.feed = at, nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.feed.weight)

    def after(self, name: str, h: Tensor, emb: Tensor) -> Tensor:
        return emb + self.feed(F.layer_norm(h, h.shape[1:])) if name == self.at else emb


__all__ = ["SelfConditioned"]
