"""Small networks for the built-in problems."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.tree import Tree


class ResidualMLP(nn.Module):
    """A conditional residual MLP: x + Σ_b gate·MLP(norm(x)·scale + shift), modulated by noise level and class.

    Args:
        shape: of one example; it is flattened.
        classes: number of classes; 0 for an unconditional network. The null label is one more, used for ``None``.
        width: of the residual stream.
        blocks: how many.
        expand: width of a block's hidden layer over ``width``.

    >>> net = ResidualMLP(shape=(1, 8, 8), classes=10, width=32, blocks=2)
    >>> out, features = net(torch.randn(3, 1, 8, 8), torch.zeros(3), None, taps=("block0",))
    >>> out.shape, features["block0"].shape
    (torch.Size([3, 1, 8, 8]), torch.Size([3, 32]))
    """

    def __init__(self, *, shape: tuple[int, ...], classes: int = 0, width: int = 192, blocks: int = 4, expand: int = 3):
        super().__init__()
        size = int(torch.Size(shape).numel())
        self.shape, self.classes = tuple(shape), classes
        self.taps = {f"block{i}": width for i in range(blocks)}
        self.register_buffer("freqs", 2.0 ** torch.linspace(-2, 4, 16), persistent=False)
        self.freqs: Tensor
        self.level = nn.Linear(32, width)
        self.label = nn.Embedding(classes + 1, width)
        self.inp = nn.Linear(size, width)
        self.blocks = nn.ModuleList(_Block(width, expand * width) for _ in range(blocks))
        self.out = nn.Linear(width, size)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, x: Tensor, level: Tensor, cond: Tree = None, *, taps: tuple[str, ...] = (), out: bool = True
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        angles = level[:, None] * self.freqs.to(x)  # [B, 16]
        label = torch.full((len(x),), self.classes, device=x.device) if cond is None else cond
        emb = F.silu(self.level(torch.cat([angles.cos(), angles.sin()], 1)) + self.label(label))  # [B, width]
        h, features = self.inp(x.flatten(1)), {}
        for name, block in zip(self.taps, self.blocks, strict=True):
            h = block(h, emb)
            if name in taps:
                features[name] = h
                if not out and len(features) == len(taps):
                    return None, features
        return self.out(F.layer_norm(h, h.shape[1:])).reshape(x.shape), features


class _Block(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.mod = nn.Linear(width, 3 * width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        scale, shift, gate = self.mod(emb).chunk(3, 1)
        y = torch.addcmul(shift, F.layer_norm(h, h.shape[1:]), 1 + scale)
        return torch.addcmul(h, 1 + gate, self.down(F.silu(self.up(y))))
