"""A small network that reads its condition by cross-attention, as text-to-image models read a prompt."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.tree import Tree


class CrossAttentionMLP(nn.Module):
    """x + Σ_b (Attn(h, prompt) + MLP(h)): every label is a prompt of a few tokens that all blocks look up.

    With a condition ``{"cond": c, "away": n, "scale": a}`` the attention is Attn(Q, K⁺, V⁺) − a·Attn(Q, K⁻, V⁻) of the
    prompts c and n; see `limbeck.diffusion.NegativeAttention`.

    Args:
        size: of x, which is flat.
        classes: number of labels; the one after the last is the empty prompt, which ``None`` is as well.
        width: of the residual stream.
        blocks: how many.
        tokens: of a prompt.
        heads: of the attention.

    >>> net = CrossAttentionMLP(size=2, classes=4, width=16, blocks=1)
    >>> out, _ = net(torch.randn(3, 2), torch.zeros(3), torch.tensor([0, 1, 4]))
    >>> out.shape
    torch.Size([3, 2])
    """

    def __init__(self, *, size: int, classes: int, width: int = 48, blocks: int = 2, tokens: int = 4, heads: int = 4):
        super().__init__()
        self.classes = classes
        self.taps = {f"block{i}": width for i in range(blocks)}
        self.register_buffer("freqs", 2.0 ** torch.linspace(-2, 4, 16), persistent=False)
        self.freqs: Tensor
        self.level = nn.Linear(32, width)
        self.prompt = nn.Embedding(classes + 1, tokens * width)
        self.inp = nn.Linear(size, width)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(blocks))
        self.out = nn.Linear(width, size)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, x: Tensor, level: Tensor, cond: Tree = None, *, taps: tuple[str, ...] = (), out: bool = True
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        away = None
        if isinstance(cond, dict):
            cond, away = cond["cond"], (self._tokens(x, cond["away"]), cond["scale"])
        prompt, angles = self._tokens(x, cond), level[:, None] * self.freqs.to(x)
        h = self.inp(x) + self.level(torch.cat([angles.cos(), angles.sin()], 1))
        features: dict[str, Tensor] = {}
        for name, block in zip(self.taps, self.blocks, strict=True):
            h = block(h, prompt, away)
            if name in taps:
                features[name] = h
                if not out and len(features) == len(taps):
                    return None, features
        return self.out(F.layer_norm(h, h.shape[1:])), features

    def _tokens(self, x: Tensor, label: Tree) -> Tensor:
        """The prompt of each row, [B, tokens, width]."""
        label = torch.full((len(x),), self.classes, device=x.device) if label is None else label
        return self.prompt(label).unflatten(1, (-1, self.inp.out_features))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.o = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, h: Tensor, prompt: Tensor, away: tuple[Tensor, Tensor] | None) -> Tensor:
        q = self.q(F.layer_norm(h, h.shape[1:]))
        z = self.attend(q, prompt)
        if away is not None:
            negative, scale = away
            z = z - scale[:, None] * self.attend(q, negative)
        h = h + self.o(z)
        return h + self.down(F.silu(self.up(F.layer_norm(h, h.shape[1:]))))

    def attend(self, q: Tensor, prompt: Tensor) -> Tensor:
        """Attn(Q, K, V) of one query per row over the prompt's tokens, [B, width]."""
        q = q.unflatten(1, (self.heads, 1, -1))  # [B, heads, 1, width/heads]
        k, v = self.kv(prompt).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        share = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        return (share @ v).flatten(1)
