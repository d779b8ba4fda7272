"""Linear recurrences in the place of attention: a state is carried from token to token instead of looking back."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import Incompatible


def recurrence(c: Tensor, b: Tensor, x: Tensor, decay: Tensor) -> Tensor:
    """y_n = cₙᵀh_n with h_n = d_n·h_{n−1} + b_n x_nᵀ, [B, H, N, D_x]: the state-space form.

    With d = 1 it is linear attention, y_n = Σ_{m ≤ n} (c_n·b_m) x_m.

    Args:
        c: what queries are in attention, [B, H, N, D].
        b: what keys are, [B, H, N, D].
        x: what values are, [B, H, N, D_x].
        decay: d, [B, H, N].

    Source: Dao & Gu 2024, arXiv 2405.21060.

    >>> one = torch.ones(1, 1, 3, 1)
    >>> recurrence(one, one, one, torch.tensor([[[1.0, 0.5, 0.5]]])).flatten()
    tensor([1.0000, 1.5000, 1.7500])
    """
    state, out = b.new_zeros(*b.shape[:2], b.shape[-1], x.shape[-1]), list[Tensor]()
    for n in range(x.shape[2]):
        state = decay[:, :, n, None, None] * state + b[:, :, n, :, None] * x[:, :, n, None, :]
        out.append((c[:, :, n, None, :] @ state)[:, :, 0])
    return torch.stack(out, 2)


def unrolled(c: Tensor, b: Tensor, x: Tensor, decay: Tensor) -> Tensor:
    """The same as `recurrence`, as a masked product: (L ∘ c bᵀ) x with L_nm = Π_{m < k ≤ n} d_k; for few tokens.

    >>> one = torch.ones(1, 1, 3, 1)
    >>> unrolled(one, one, one, torch.tensor([[[1.0, 0.5, 0.5]]])).flatten()
    tensor([1.0000, 1.5000, 1.7500])
    """
    total = decay.clamp_min(torch.finfo(decay.dtype).tiny).log().cumsum(2)  # ln 0 less ln 0 is no number
    mask = torch.ones(x.shape[2], x.shape[2], dtype=torch.bool, device=x.device).tril()
    weight = (total[..., :, None] - total[..., None, :]).masked_fill(~mask, -torch.inf).exp()
    return (weight * (c @ b.transpose(-1, -2))) @ x


class Recurrent(nn.Module):
    """A layer of a transformer whose attention is a recurrence over its tokens in both directions, before its MLP.

    c, b and x start as the layer's queries, keys and values, and its output projection stays; decay and step size of
    each head and token are new. Without them (``decay`` 1, step 1) it would be linear attention of the same weights.

    Args:
        layer: norm first, batch first.
        copied: whether c, b and x start from its weights; otherwise as fresh as decays do.

    Raises:
        Incompatible: a layer with the norm after attention.

    Source: Mamba in the Llama, Wang et al. 2024, arXiv 2408.15237, and MaTVLM, Li et al. 2025, arXiv 2503.13440; there
    with a short convolution and from left to right, as language is.

    >>> layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True)
    >>> Recurrent(layer)(torch.zeros(3, 5, 8)).shape
    torch.Size([3, 5, 8])
    """

    def __init__(self, layer: nn.TransformerEncoderLayer, *, copied: bool = True):
        super().__init__()
        if not layer.norm_first or not layer.self_attn.batch_first:
            got = "norm_first=False" if not layer.norm_first else "batch_first=False"
            raise Incompatible("Recurrent", need="a layer with its norm, and the batch, first", got=got)
        attention, width = layer.self_attn, layer.self_attn.embed_dim
        self.heads = attention.num_heads
        self.norm, self.inputs = copy.deepcopy(layer.norm1), nn.Linear(width, 3 * width)
        self.out = copy.deepcopy(attention.out_proj)
        self.gates = nn.Linear(width, 2 * self.heads)
        nn.init.zeros_(self.gates.weight)
        with torch.no_grad():
            self.gates.bias.copy_(torch.tensor([4.0, -1.0]).repeat_interleave(self.heads))
            if copied:
                self.inputs.weight.copy_(attention.in_proj_weight)
                self.inputs.bias.copy_(attention.in_proj_bias)
        self.rest = nn.ModuleList(copy.deepcopy(part) for part in (layer.norm2, layer.linear1, layer.linear2))
        self.activation = layer.activation

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, N, width] of such."""
        h = self.norm(tokens)
        c, b, x = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.inputs(h).chunk(3, -1))
        decay, step = (part.transpose(1, 2) for part in self.gates(h).chunk(2, -1))
        inputs = c / c.shape[-1] ** 0.5, b, x * F.softplus(step)[..., None], decay.sigmoid()
        there = unrolled(*inputs)
        back = unrolled(*(part.flip(2) for part in inputs)).flip(2)
        tokens = tokens + self.out((there + back).transpose(1, 2).flatten(2))
        norm, up, down = self.rest
        return tokens + down(self.activation(up(norm(tokens))))


__all__ = ["Recurrent", "recurrence", "unrolled"]
