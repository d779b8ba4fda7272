"""Masked autoencoders of small images: the parts that some recipes train first, and batches of which most is hidden."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.engine.data import Batch, Source
from limbeck.errors import BadSetting
from limbeck.problems.networks import ViT
from limbeck.rng import Rng


def patches(x: Tensor, patch: int) -> Tensor:
    """The pixels of each patch, row by row, [B, N, patch²] of images [B, 1, S, S].

    >>> patches(torch.arange(16.0).view(1, 1, 4, 4), 2)[0, 1]
    tensor([2., 3., 6., 7.])
    """
    return F.unfold(x, patch, stride=patch).transpose(1, 2)


class MaskedPatches(Source):
    """Images of which a network sees some patches: ``x`` = {"x", "keep"}, what they show and what is hidden besides.

    Each batch has ``keep`` [n, K], the numbers of the patches that may be seen, ``target`` [n, N, patch²], the pixels
    of all, and ``hidden`` [n, N], 1 for those that are not seen; other fields of the source stay.

    Args:
        source: of images x, [n, 1, S, S].
        patch: side of a patch.
        ratio: share of the patches that is hidden.

    >>> from limbeck import Dataset
    >>> batch = MaskedPatches(Dataset(x=torch.zeros(5, 1, 8, 8)), patch=2).take(3, Rng(0))
    >>> batch["x"]["keep"].shape, batch["hidden"].sum(1)
    (torch.Size([3, 4]), tensor([12., 12., 12.]))
    """

    def __init__(self, source: Source, *, patch: int = 2, ratio: float = 0.75):
        if "x" not in source.fields:
            raise BadSetting(f"MaskedPatches needs a source of x, got one of {', '.join(sorted(source.fields))}.")
        self.source, self.patch, self.ratio = source, patch, ratio
        self.fields = source.fields | {"target", "hidden"}

    def take(self, n: int, rng: Rng) -> Batch:
        batch = self.source.take(n, rng)
        target = patches(batch["x"], self.patch)
        count = target.shape[1]
        seen = round(count * (1 - self.ratio))
        if not 0 < seen < count:
            raise BadSetting(f"ratio must leave some of {count} patches and hide some, got {self.ratio:g}.")
        keep = rng.uniform(n, count).argsort(1)[:, :seen]
        hidden = torch.ones(n, count).to(target).scatter(1, keep, 0.0)
        return {**batch, "x": {"x": batch["x"], "keep": keep}, "target": target, "hidden": hidden}


class MaskedAutoencoder(nn.Module):
    """A vision transformer that reads the patches it is shown, and a small one that fills in all others.

    Args:
        encoder: whose tokens, blocks and last norm are used; its head learns nothing here.
        width: of the decoder's tokens.
        blocks: of the decoder.
        heads: of the decoder's attention.

    Source: He et al. 2021, arXiv 2111.06377, without a class token.

    >>> net = MaskedAutoencoder(ViT(size=8, classes=10, blocks=1))
    >>> net(torch.zeros(3, 1, 8, 8), keep=torch.tensor([[0, 5], [1, 2], [3, 15]])).shape
    torch.Size([3, 16, 4])
    """

    def __init__(self, encoder: ViT, *, width: int = 32, blocks: int = 1, heads: int = 4):
        super().__init__()
        patch, wide = encoder.stem.kernel_size[0], encoder.stem.out_channels
        self.encoder = encoder
        self.embed = nn.Linear(wide, width)
        self.blank = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, encoder.places.shape[1], width))
        layers = (
            nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, F.gelu, 1e-5, True, True) for _ in range(blocks)
        )
        self.decoder = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(width)
        self.pixels = nn.Linear(width, patch**2)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        """Pixels of all patches [B, N, patch²], of images [B, 1, S, S] whose patches ``keep`` [B, K] are seen."""
        net = self.encoder
        tokens = net.stem(x).flatten(2).transpose(1, 2) + net.places
        seen = net.norm(net.blocks(tokens.gather(1, keep[..., None].expand(-1, -1, tokens.shape[2]))))
        told = self.embed(seen)
        blank = self.blank.expand(len(x), tokens.shape[1], -1).to(told)
        whole = blank.scatter(1, keep[..., None].expand(-1, -1, told.shape[2]), told)
        return self.pixels(self.norm(self.decoder(whole + self.places)))
