"""Small networks for the built-in problems."""

from itertools import pairwise

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
            emb = self.after(name, h, emb)
            if name in taps:
                features[name] = h
                if not out and len(features) == len(taps):
                    return None, features
        return self.out(F.layer_norm(h, h.shape[1:])).reshape(x.shape), features

    def after(self, name: str, h: Tensor, emb: Tensor) -> Tensor:
        """What modulates the blocks after this one, which has put out h, [B, width] each: the same as before."""
        return emb


class _Block(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.mod = nn.Linear(width, 3 * width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        scale, shift, gate = self.mod(emb).chunk(3, 1)
        y = torch.addcmul(shift, F.layer_norm(h, h.shape[1:]), 1 + scale)
        return torch.addcmul(h, 1 + gate, self.down(F.silu(self.up(y))))


class MLP(nn.Module):
    """A perceptron on flattened inputs: ``blocks`` of linear layers with ReLU, and a ``head``.

    Args:
        size: numbers of an input.
        classes: outputs.
        widths: of the hidden layers.

    >>> MLP(size=64, classes=10, widths=(32,))(torch.zeros(3, 1, 8, 8)).shape
    torch.Size([3, 10])
    """

    def __init__(self, *, size: int, classes: int, widths: tuple[int, ...] = (32,)):
        super().__init__()
        sizes = (size, *widths)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(sizes)))
        self.head = nn.Linear(sizes[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C] of inputs [B, …]."""
        return self.head(self.blocks(x.flatten(1)))


class ConvNet(nn.Module):
    """A small convolutional network on images [B, 1, H, W]: each of its ``blocks`` halves the image after the first.

    Args:
        classes: outputs.
        widths: channels of the blocks.

    >>> ConvNet(classes=10, widths=(8, 16))(torch.zeros(3, 1, 8, 8)).shape
    torch.Size([3, 10])
    """

    def __init__(self, *, classes: int, widths: tuple[int, ...] = (8, 16, 16)):
        super().__init__()
        sizes = (1, *widths)
        blocks = (self._block(a, b, stride=1 if k == 0 else 2) for k, (a, b) in enumerate(pairwise(sizes)))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(sizes[-1], classes)

    @staticmethod
    def _block(a: int, b: int, *, stride: int) -> nn.Module:
        conv = nn.Conv2d(a, b, 3, stride=stride, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(b), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C] of images [B, 1, H, W]."""
        return self.head(self.blocks(x).mean((2, 3)))


class ViT(nn.Module):
    """A small vision transformer on square images [B, 1, S, S], read out by the mean of its tokens.

    Args:
        size: S.
        classes: outputs.
        patch: side of a patch.
        width: of a token.
        blocks: how many.
        heads: of the attention.

    Source: Dosovitskiy et al. 2020, arXiv 2010.11929, without its class token.

    >>> ViT(size=8, classes=10, blocks=1)(torch.zeros(3, 1, 8, 8)).shape
    torch.Size([3, 10])
    """

    def __init__(self, *, size: int, classes: int, patch: int = 2, width: int = 32, blocks: int = 3, heads: int = 4):
        super().__init__()
        self.stem = nn.Conv2d(1, width, patch, stride=patch)
        self.places = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2, width))
        layers = [
            nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, F.gelu, 1e-5, True, True) for _ in range(blocks)
        ]
        for layer in layers:
            layer.self_attn = SelfAttention(layer.self_attn)
        self.blocks = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C] of images [B, 1, S, S]."""
        tokens = self.stem(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.blocks(tokens)).mean(1))


class SelfAttention(nn.MultiheadAttention):
    """Another's self-attention, by the same parameters, whose ``queries``, ``keys`` and ``values`` can be tapped.

    They are [B, N, D], heads side by side. There are no masks and no weights to return.

    >>> from limbeck.engine.taps import tap
    >>> net = ViT(size=8, classes=10, width=32)
    >>> with tap(net, "blocks.2.self_attn.keys") as seen:
    ...     logits = net(torch.zeros(3, 1, 8, 8))
    >>> seen["blocks.2.self_attn.keys"].shape
    torch.Size([3, 16, 32])
    """

    def __init__(self, other: nn.MultiheadAttention):
        super().__init__(other.embed_dim, other.num_heads, batch_first=True, device="meta")
        self.in_proj_weight, self.in_proj_bias = other.in_proj_weight, other.in_proj_bias
        self.out_proj = other.out_proj
        self.queries, self.keys, self.values = (nn.Identity() for _ in range(3))

    def forward(self, query: Tensor, *_: Tensor, **settings: object) -> tuple[Tensor, None]:  # type: ignore[override]  # keys are the queries
        """What attention puts out, [B, N, D], and no weights."""
        # places before examples, in the layout of the class above: gradients are its sums in its order
        both = F.linear(query.transpose(0, 1), self.in_proj_weight, self.in_proj_bias)
        parts = both.unflatten(-1, (3, -1)).unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous()
        named = zip((self.queries, self.keys, self.values), parts.transpose(1, 2), strict=True)
        q, k, v = (module(part).unflatten(2, (self.num_heads, -1)).transpose(1, 2) for module, part in named)
        out = F.scaled_dot_product_attention(q, k, v).permute(2, 0, 1, 3).contiguous()
        return self.out_proj(out.flatten(0, 1).flatten(1)).unflatten(0, out.shape[:2]).transpose(0, 1), None


class Mixer(nn.Module):
    """A small MLP-Mixer on square images [B, 1, S, S]: perceptrons over patches and over channels in turn.

    Args:
        size: S.
        classes: outputs.
        patch: side of a patch.
        width: of a token.
        blocks: how many.

    Source: Tolstikhin et al. 2021, arXiv 2105.01601.

    >>> Mixer(size=8, classes=10, blocks=1)(torch.zeros(3, 1, 8, 8)).shape
    torch.Size([3, 10])
    """

    def __init__(self, *, size: int, classes: int, patch: int = 2, width: int = 32, blocks: int = 3):
        super().__init__()
        self.stem = nn.Conv2d(1, width, patch, stride=patch)
        self.blocks = nn.Sequential(*(_Mix((size // patch) ** 2, width) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C] of images [B, 1, S, S]."""
        tokens = self.blocks(self.stem(x).flatten(2).transpose(1, 2))
        return self.head(self.norm(tokens).mean(1))


class _Mix(nn.Module):
    def __init__(self, tokens: int, width: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.across, self.along = (
            nn.Sequential(nn.Linear(n, 2 * n), nn.GELU(), nn.Linear(2 * n, n)) for n in (tokens, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.along(self.norms[1](x))
