"""Digits: scikit-learn's 1 797 real images of handwritten digits, 8 × 8, with a small judge of samples."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.diffusion import LogNormal
from limbeck.engine import EMA, Adam, Cosine, Dataset, Drawn, distill
from limbeck.engine.data import Batch, Source
from limbeck.objectives import CrossEntropy, Denoising
from limbeck.problems.networks import ResidualMLP
from limbeck.problems.problem import Generative
from limbeck.rng import Rng, seeded
from limbeck.teachers import Trained, read_tensors
from limbeck.tree import Tree

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRAIN, HELDOUT = 1300, 497
ASSETS = Path(__file__).parent / "assets"


@lru_cache(maxsize=1)
def split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The fixed split: 1 300 images to train on and 497 held out, stratified by class.

    Each class is shuffled by its own named generator; the classes' shares of the 1 300 are their shares of the whole,
    rounded by the largest remainder. Pixels 0 … 16 become −1 … 1.

    Returns:
        train_x [1300, 1, 8, 8], train_y [1300], heldout_x [497, 1, 8, 8], heldout_y [497]; float32 and int64.

    Source: scikit-learn's ``load_digits``, the test part of Alpaydin & Kaynak 1998, "Optical Recognition of Handwritten
    Digits" (UCI, CC BY 4.0).

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
    affine = _affine(rng.normal(len(x), 5, dtype=x.dtype), x.shape[-1], shift=shift, turn=turn, scale=scale)
    return _moved(x, affine) + noise * rng.normal(*x.shape, dtype=x.dtype)


def _affine(z: Tensor, width: int, *, shift: float, turn: float, scale: float) -> Tensor:
    """(A, b) of standard normal numbers z [B, 5], [B, 2, 3]."""
    angle, size, by = z[:, 0] * math.radians(turn), (z[:, 1:3] * scale).exp(), z[:, 3:] * 2 * shift / width
    rows = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).reshape(-1, 2, 2)
    return torch.cat([rows * size[:, None], by[..., None]], 2)


def _moved(x: Tensor, affine: Tensor) -> Tensor:
    grid = F.affine_grid(affine, list(x.shape), align_corners=False)
    return F.grid_sample(x + 1, grid, align_corners=False) - 1


@dataclass(frozen=True, kw_only=True)
class Jitter:
    """`jitter` as parameters and what is made of them, so that a view can be kept in 32 bytes and made again.

    Args: those of `jitter`.

    >>> x, views = torch.rand(4, 1, 8, 8), Jitter()
    >>> view = views.draw(x, Rng(0))
    >>> bool((views.replay(x, view)[2:3] == views.replay(x[2:3], {k: v[2:3] for k, v in view.items()})).all())
    True
    """

    shift: float = 0.5
    turn: float = 8.0
    scale: float = 0.08
    noise: float = 0.1

    def draw(self, x: Tensor, rng: Rng) -> dict[str, Tensor]:
        """``affine``, A and b of each image, [B, 2, 3], and ``seed`` of its noise, [B]."""
        z = rng.normal(len(x), 5, dtype=x.dtype)
        affine = _affine(z, x.shape[-1], shift=self.shift, turn=self.turn, scale=self.scale)
        return {"affine": affine, "seed": rng.integers(len(x), 2**63 - 1)}

    def replay(self, x: Tensor, view: Mapping[str, Tensor]) -> Tensor:
        """The views that these parameters make of images, to the bit, whatever else is in the batch."""
        noise = [Rng(seed).normal(*x.shape[1:], dtype=x.dtype) for seed in view["seed"].tolist()]
        return _moved(x, view["affine"].to(x)) + self.noise * torch.stack(noise).to(x)


def jittered(x: Tensor, y: Tensor) -> Source:
    """Labelled images as fresh views under `jitter`: fields x [n, 1, 8, 8] and y [n]."""

    def make(n: int, rng: Rng) -> Batch:
        index = rng.integers(n, len(x))
        return {"x": jitter(x[index], rng), "y": y[index]}

    return Drawn(make, fields=("x", "y"))


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


class Digits(Generative):
    """Real digits, a class-conditional teacher of a million parameters, and a classifier's 64 features as the judge.

    >>> problem = Digits()
    >>> problem.teacher_sample(torch.randn(2, 1, 8, 8), torch.tensor([3, 7])).shape
    torch.Size([2, 1, 8, 8])
    """

    name = "digits"
    threads = 1
    shape = (1, 8, 8)

    @cached_property
    def teacher(self) -> Trained:
        return blank_teacher().load(ASSETS / "digits_teacher.safetensors").requires_grad_(False).eval()

    @cached_property
    def judge(self) -> DigitFeatures:
        """The classifier whose features and labels judge samples."""
        return load_judge()

    @cached_property
    def source(self) -> Source:
        x, y, _, _ = split()
        return Dataset(x=x, cond=y)

    def conditions(self, n: int, rng: Rng) -> Tree:
        return rng.integers(n, 10)

    def spread(self, n: int) -> Tree:
        return torch.arange(n) % 10

    def reference(self) -> Tensor:
        return split()[0]

    def unseen(self) -> Tensor:
        return split()[2]

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        return self.judge.features(x)

    @torch.no_grad()
    def agrees(self, x: Tensor, cond: Tree) -> Tensor:
        return self.judge(x).argmax(1) == cond

    def show(self, axes: "Axes", x: Tensor, cond: Tree) -> None:
        tiles = F.pad(x[:, 0], (1, 1, 1, 1), value=-1)  # a gap between digits
        tiles = torch.cat([tiles, tiles.new_full((-len(tiles) % 10, 10, 10), -1.0)]).unflatten(0, (-1, 10))
        axes.imshow(tiles.permute(0, 2, 1, 3).flatten(0, 1).flatten(1), cmap="gray", vmin=-1, vmax=1)


def problem() -> Digits:
    """The problem, as the command line makes it."""
    return Digits()


def blank_teacher() -> Trained:
    """The teacher's network before training."""
    return Trained(ResidualMLP(shape=(1, 8, 8), classes=10, width=192, blocks=4, expand=2))


def load_judge() -> DigitFeatures:
    """The shipped classifier, frozen."""
    judge = DigitFeatures()
    judge.load_state_dict(read_tensors(ASSETS / "digits_features.safetensors"))
    return judge.requires_grad_(False).eval()


def train_judge() -> nn.Module:
    """Trains the classifier on augmented images."""
    x, y, _, _ = split()
    with seeded("digits", "features"):
        judge = DigitFeatures()
    optim = Adam(lr=3e-3, weight_decay=0.05, schedule=Cosine())
    distill(None, judge, CrossEntropy(), jittered(x, y), steps=1500, batch=128, optim=optim).finish()
    judge.eval().standardise(x)
    return judge


def train_teacher() -> nn.Module:
    """Trains the diffusion teacher."""
    x, y, _, _ = split()
    with seeded("digits", "teacher"):
        teacher = blank_teacher()
    optim = Adam(lr=2e-3, betas=(0.9, 0.99), schedule=Cosine(warmup=1 / 30))
    objective = Denoising(times=LogNormal(mean=-0.8, std=1.4), drop=0.1)
    return distill(
        None, teacher, objective, Dataset(x=x, cond=y), steps=3000, optim=optim, ema=EMA(decay=0.998)
    ).finish()


def main() -> None:
    """Trains the shipped networks again: ``python -m limbeck.problems.digits``."""
    from safetensors.torch import save_file

    torch.set_num_threads(Digits.threads or torch.get_num_threads())
    ASSETS.mkdir(exist_ok=True)
    for name, train in (("digits_features", train_judge), ("digits_teacher", train_teacher)):
        save_file(
            {key: value.contiguous() for key, value in train().state_dict().items()}, ASSETS / f"{name}.safetensors"
        )
        print(f"{name} trained")


if __name__ == "__main__":
    main()
