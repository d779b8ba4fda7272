"""Projectors between networks of different kinds: attention, linear maps by neighbourhood, convolution."""

from dataclasses import dataclass

import torch
from torch import Size, Tensor, nn

from limbeck.errors import BadSetting, in_range
from limbeck.objectives.networks.projectors import Projector, channels, resized


def tokens(x: Tensor) -> Tensor:
    """Features of any shape as tokens, [B, N, D]: maps row by row, a vector as one.

    >>> tokens(torch.ones(2, 8, 4, 4)).shape, tokens(torch.ones(2, 8)).shape
    (torch.Size([2, 16, 8]), torch.Size([2, 1, 8]))
    """
    return x.flatten(2).transpose(1, 2) if x.dim() == 4 else x[:, None] if x.dim() == 2 else x


def untokened(x: Tensor, shape: Size) -> Tensor:
    """Tokens [B, N, D] in the form of features of this shape, whose places they have.

    >>> untokened(torch.ones(2, 16, 8), torch.Size([5, 3, 4, 4])).shape
    torch.Size([2, 8, 4, 4])
    """
    if len(shape) == 4:
        return x.transpose(1, 2).unflatten(2, tuple(shape[2:]))
    return x[:, 0] if len(shape) == 2 else x


def as_map(x: Tensor) -> Tensor:
    """Features of any form as a map [B, C, H, W]: tokens row by row, a vector as one place.

    Raises:
        Incompatible: tokens that are no square.

    >>> as_map(torch.ones(2, 9, 8)).shape, as_map(torch.ones(2, 8)).shape
    (torch.Size([2, 8, 3, 3]), torch.Size([2, 8, 1, 1]))
    """
    if x.dim() == 3:
        side = round(x.shape[1] ** 0.5)
        return resized(x, Size((*x.shape[::2], side, side)))
    return x[:, :, None, None] if x.dim() == 2 else x


def _map_of(shape: Size) -> Size:
    return as_map(torch.empty(shape, device="meta")).shape


@dataclass(frozen=True, kw_only=True)
class CrossAttention(Projector):
    """Learnable queries, one at each of the teacher's places, attend to the student's features; a perceptron follows.

    out = a + P(norm(a)), a = W·softmax(Q·Kᵀ/√d)·V over heads, with keys and values linear in the student's features
    plus an embedding of their places. Maps, tokens and vectors of any number of places fit.

    Args:
        heads: of the attention; they must divide the teacher's channels.

    Raises:
        BadSetting: heads that do not divide the teacher's channels.

    Source: ScaleKD, Fan et al. 2024, arXiv 2411.06786, the cross-attention projector; no convolution before it here.

    >>> CrossAttention(heads=2).build(torch.Size([8, 16, 4, 4]), torch.Size([8, 9, 6]))(torch.ones(3, 16, 4, 4)).shape
    torch.Size([3, 9, 6])
    """

    heads: int = 4

    def __post_init__(self) -> None:
        in_range("heads", self.heads, 1)

    def build(self, student: Size, teacher: Size) -> nn.Module:
        if (width := channels(teacher)) % self.heads:
            raise BadSetting(f"CrossAttention needs heads that divide {width} channels, got {self.heads}.")
        return Attending(student, teacher, self.heads)


class Attending(nn.Module):
    """Features of one shape at the places, and with the channels, of another; see `CrossAttention`."""

    def __init__(self, student: Size, teacher: Size, heads: int):
        super().__init__()
        width, self.shape = channels(teacher), teacher
        seen, wanted = (tokens(torch.empty(shape, device="meta")).shape[1] for shape in (student, teacher))
        self.embed = nn.Linear(channels(student), width)
        self.places = nn.Parameter(0.02 * torch.randn(1, seen, width))
        self.queries = nn.Parameter(torch.randn(1, wanted, width) / width**0.5)
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Features at the teacher's places."""
        keys = self.embed(tokens(x)) + self.places
        out, _ = self.attend(self.queries.expand(len(x), -1, -1), keys, keys, need_weights=False)
        return untokened(out + self.mix(self.norm(out)), self.shape)


@dataclass(frozen=True, kw_only=True)
class Groupwise(Projector):
    """A linear map of the channels for each neighbourhood of ``side`` × ``side`` places, at the teacher's places.

    One neighbourhood of all places is `Projection`; one for each place has the most parameters.

    Args:
        side: of a neighbourhood.

    Raises:
        BadSetting: sides that do not divide the teacher's map.
        Incompatible: tokens that are no square.

    Source: Liu et al. 2022, arXiv 2207.05273, the group-wise linear projector, whose neighbourhoods are 4 × 4.

    >>> Groupwise(side=2).build(torch.Size([8, 5, 8, 8]), torch.Size([8, 16, 6]))(torch.ones(3, 5, 8, 8)).shape
    torch.Size([3, 16, 6])
    """

    side: int = 4

    def __post_init__(self) -> None:
        in_range("side", self.side, 1)

    def build(self, student: Size, teacher: Size) -> nn.Module:
        shape = _map_of(teacher)
        if shape[2] % self.side or shape[3] % self.side:
            size = f"{shape[2]} × {shape[3]}"
            raise BadSetting(f"Groupwise needs sides that divide the teacher's map of {size}, got {self.side}.")
        made = GroupLinear(channels(student), channels(teacher), shape[2:], self.side)
        return Mapped2d(made, shape, teacher)


class GroupLinear(nn.Module):
    """y = x·W_g + b_g at every place of a map [B, c, H, W], g its neighbourhood; see `Groupwise`."""

    def __init__(self, width: int, out: int, size: Size, side: int):
        super().__init__()
        rows, columns = (torch.arange(n) // side for n in size)
        group = rows[:, None] * (size[1] // side) + columns
        self.register_buffer("group", group, persistent=False)
        self.group: Tensor
        groups = int(group.max()) + 1
        self.weight = nn.Parameter(torch.empty(groups, width, out).uniform_(-1, 1) / width**0.5)
        self.bias = nn.Parameter(torch.zeros(groups, out))

    def forward(self, x: Tensor) -> Tensor:
        """[B, d, H, W]."""
        out = torch.einsum("bchw,hwcd->bdhw", x, self.weight[self.group].to(x))
        return out + self.bias[self.group].movedim(-1, 0).to(x)


@dataclass(frozen=True, kw_only=True)
class Convolution(Projector):
    """A convolution of the student's map, brought to the teacher's places; tokens count as a square map.

    Args:
        kernel: its side, odd; 1 is `Projection`.

    Raises:
        BadSetting: an even kernel.
        Incompatible: tokens that are no square.

    >>> Convolution().build(torch.Size([8, 5, 8, 8]), torch.Size([8, 16, 6]))(torch.ones(3, 5, 8, 8)).shape
    torch.Size([3, 16, 6])
    """

    kernel: int = 3

    def __post_init__(self) -> None:
        in_range("kernel", self.kernel, 1)
        if self.kernel % 2 == 0:
            raise BadSetting(f"Convolution needs an odd kernel, got {self.kernel}.")

    def build(self, student: Size, teacher: Size) -> nn.Module:
        conv = nn.Conv2d(channels(student), channels(teacher), self.kernel, padding=self.kernel // 2)
        return Mapped2d(conv, _map_of(student), teacher)


class Mapped2d(nn.Module):
    """A module on maps, for features of any form: they are brought to a map's places before it, and to others' after.

    Args:
        inner: [B, c, H, W] → [B, d, H, W].
        at: of the map whose places it works at.
        to: of the features whose places are wanted.
    """

    def __init__(self, inner: nn.Module, at: Size, to: Size):
        super().__init__()
        self.inner, self.at, self.to_shape = inner, at, to

    def forward(self, x: Tensor) -> Tensor:
        """Features of d channels at the wanted places."""
        return resized(self.inner(resized(as_map(x), self.at)), self.to_shape)


__all__ = ["Convolution", "CrossAttention", "Groupwise", "as_map", "tokens", "untokened"]
