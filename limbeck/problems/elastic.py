"""A vision transformer that holds smaller ones: the first channels of its first blocks are networks by themselves."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from limbeck.engine.taps import tap
from limbeck.problems.networks import ViT

Size = tuple[int, int]
"""Width of a token, and number of blocks."""

HEAD = 8
PARTS = ("queries", "keys", "values")


def cut(whole: Tensor, name: str, shape: torch.Size) -> Tensor:
    """The first rows and columns of a parameter, of each of three parts where it makes queries, keys and values.

    >>> cut(torch.arange(6.0), "in_proj_bias", torch.Size([3]))
    tensor([0., 2., 4.])
    """
    if "in_proj" in name:
        return torch.cat([cut(part, "", torch.Size((shape[0] // 3, *shape[1:]))) for part in whole.chunk(3)])
    return whole[tuple(slice(n) for n in shape)]


class ElasticViT(nn.Module):
    """A `ViT` of which any of ``sizes`` can be taken out: while it learns each pass is one of them, drawn at random.

    Otherwise it is the one of ``size``. The queries, keys and values of a pass's last block can be tapped as
    ``last.queries``, ``last.keys`` and ``last.values``.

    Args:
        side: of an image.
        classes: outputs.
        sizes: width and blocks of each; widths are multiples of 8, the channels of a head.

    Source: AutoDistil, Xu et al. 2022, arXiv 2201.12507, for transformers that share weights.

    >>> net = ElasticViT(side=8, classes=10, sizes=((16, 1), (24, 2))).eval()
    >>> net.size, net(torch.zeros(3, 1, 8, 8)).shape, sum(p.numel() for p in net.extract((16, 1)).parameters())
    ((24, 2), torch.Size([3, 10]), 2762)
    """

    def __init__(self, *, side: int, classes: int, sizes: tuple[Size, ...]):
        super().__init__()
        self.side, self.classes, self.sizes = side, classes, sizes
        self.size: Size = max(width for width, _ in sizes), max(blocks for _, blocks in sizes)
        self.whole = self._blank(self.size)
        self.last = nn.Module()
        for part in PARTS:
            self.last.add_module(part, nn.Identity())

    def _blank(self, size: Size) -> ViT:
        width, blocks = size
        return ViT(size=self.side, classes=self.classes, width=width, blocks=blocks, heads=width // HEAD)

    def _cuts(self, net: ViT) -> dict[str, Tensor]:
        whole = dict(self.whole.named_parameters())
        return {name: cut(whole[name], name, p.shape) for name, p in net.named_parameters()}

    def extract(self, size: Size) -> ViT:
        """A network of its own of this size, with the weights that it shares."""
        net = self._blank(size)
        with torch.no_grad():
            for name, value in self._cuts(net).items():
                net.get_parameter(name).copy_(value)
        return net

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C] of images [B, 1, S, S]."""
        size = self.sizes[int(torch.randint(len(self.sizes), ()))] if self.training else self.size
        with torch.device("meta"):
            net = self._blank(size)
        names = {part: f"blocks.{size[1] - 1}.self_attn.{part}" for part in PARTS}
        with tap(net, *names.values()) as seen:
            out = functional_call(net, self._cuts(net), (x,))
        for part, name in names.items():
            self.last.get_submodule(part)(seen[name])
        return out
