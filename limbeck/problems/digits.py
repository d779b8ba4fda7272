"""Digits: scikit-learn's 1 797 real images of handwritten digits, 8 × 8, with a small judge of samples."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.rng import Rng

TRAIN, HELDOUT = 1300, 497


def split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The fixed split: 1 300 images to train on and 497 held out, stratified by class.

    Each class is shuffled by its own named generator; the classes' shares of the 1 300 are their shares of the whole,
    rounded by the largest remainder. Pixels 0 … 16 become −1 … 1.

    Returns:
        train_x [1300, 1, 8, 8], train_y [1300], heldout_x [497, 1, 8, 8], heldout_y [497]; float32 and int64.

    Source: scikit-learn's ``load_digits``, the test part of Alpaydin & Kaynak 1998 (UCI, optical digits).

    >>> train_x, train_y, heldout_x, heldout_y = split()
    >>> train_x.shape, heldout_x.shape, train_y.bincount().tolist()
    (torch.Size([1300, 1, 8, 8]), torch.Size([497, 1, 8, 8]), [129, 132, 128, 132, 131, 132, 131, 129, 126, 130])
    """
    from sklearn.datasets import load_digits  # a slow import, and only this problem needs it

    images, labels = load_digits(return_X_y=True)
    x = torch.as_tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    y = torch.as_tensor(labels, dtype=torch.int64)
    share = y.bincount().double() * TRAIN / len(y)
    count = share.floor().long()
    count[(share - count).argsort(descending=True, stable=True)[: TRAIN - int(count.sum())]] += 1
    train, heldout = [], []
    for k, n in enumerate(count.tolist()):
        index = (y == k).nonzero()[:, 0]
        index = index[Rng(("digits", "split", k)).uniform(len(index)).argsort()]
        train.append(index[:n])
        heldout.append(index[n:])
    one, two = torch.cat(train).sort().values, torch.cat(heldout).sort().values
    return x[one], y[one], x[two], y[two]


def jitter(
    x: Tensor, rng: Rng, *, shift: float = 0.5, turn: float = 8.0, scale: float = 0.08, noise: float = 0.1
) -> Tensor:
    """Each image moved, turned and scaled a little, with noise: x(A·u + b) + noise·ε on the pixel grid u.

    Args:
        x: images in [−1, 1], [B, 1, H, W]; what comes in from outside is −1.
        rng: draws A, b and ε.
        shift: standard deviation of b, in pixels.
        turn: standard deviation of the angle, in degrees.
        scale: standard deviation of the logarithm of the size, each axis by itself.
        noise: standard deviation of the noise in a pixel.

    >>> x = torch.rand(2, 1, 8, 8)
    >>> bool(torch.allclose(jitter(x, Rng(0), shift=0, turn=0, scale=0, noise=0), x, atol=1e-5))
    True
    """
    z = rng.normal(len(x), 5, dtype=x.dtype)
    angle, size, by = z[:, 0] * math.radians(turn), (z[:, 1:3] * scale).exp(), z[:, 3:] * 2 * shift / x.shape[-1]
    rows = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).reshape(-1, 2, 2)
    grid = F.affine_grid(torch.cat([rows * size[:, None], by[..., None]], 2), list(x.shape), align_corners=False)
    moved = F.grid_sample(x + 1, grid, align_corners=False) - 1
    return moved + noise * rng.normal(*x.shape, dtype=x.dtype)


class DigitFeatures(nn.Module):
    """A small classifier of digits: its penultimate layer is the feature space, its logits are the judge.

    Three convolutions (32, 64, 64; the last two halve the image), a linear layer to 64 features, a linear head. The
    features are taken before the last non-linearity and standardised by the buffers ``mean`` and ``std``, so that a
    Fréchet distance has a natural scale: the training set has mean 0 and variance 1 in each of the 64 dimensions.

    >>> net = DigitFeatures()
    >>> net(torch.zeros(3, 1, 8, 8)).shape, net.features(torch.zeros(3, 1, 8, 8)).shape
    (torch.Size([3, 10]), torch.Size([3, 64]))
    """

    size = 64

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.SiLU(),
            nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.SiLU(),
            nn.Conv2d(64, 64, 3, padding=1, stride=2), nn.SiLU(),
            nn.Flatten(), nn.Dropout(0.2), nn.Linear(256, self.size),
        )  # fmt: skip
        self.head = nn.Linear(self.size, 10)
        self.register_buffer("mean", torch.zeros(self.size))
        self.register_buffer("std", torch.ones(self.size))
        self.mean: Tensor
        self.std: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 10] of images [B, 1, 8, 8]."""
        return self.head(F.silu(self.convs(x)))

    def features(self, x: Tensor) -> Tensor:
        """Standardised features [B, 64] of images [B, 1, 8, 8]."""
        return (self.convs(x) - self.mean) / self.std

    @torch.no_grad()
    def standardise(self, x: Tensor) -> None:
        """Sets the buffers so that the features of images x [N, 1, 8, 8] have mean 0 and variance 1."""
        raw = self.convs(x)
        self.mean.copy_(raw.mean(0))
        self.std.copy_(raw.std(0))
