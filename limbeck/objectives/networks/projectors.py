"""Projectors: how features of the student are brought to the shape of the teacher's, sized from one dry pass.

Features are [B, D], tokens [B, N, D] or maps [B, C, H, W]; channels are the last axis of the first two.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Size, Tensor, nn
from torch.nn import functional as F

from limbeck.errors import Incompatible, in_range


def channels(shape: Size) -> int:
    """The number of channels of features of this shape.

    >>> channels(torch.Size([8, 16, 4, 4])), channels(torch.Size([8, 49, 32]))
    (16, 32)
    """
    return shape[1] if len(shape) == 4 else shape[-1]


def resized(x: Tensor, shape: Size) -> Tensor:
    """Features at the places of others: maps by area or bilinearly, and maps as tokens, row by row, or back.

    Args:
        x: features.
        shape: of the features whose places they get; channels are left as they are.

    Raises:
        Incompatible: a vector for each place from one vector, or tokens of another number.

    >>> resized(torch.ones(2, 8, 4, 4), torch.Size([2, 4, 16])).shape
    torch.Size([2, 4, 8])
    """
    if len(shape) == 2:
        return x.flatten(2).mean(2) if x.dim() == 4 else x.mean(1) if x.dim() == 3 else x
    if x.dim() == len(shape) and (x.shape[2:] == shape[2:] if x.dim() == 4 else x.shape[1] == shape[1]):
        return x
    if x.dim() == 3 and len(shape) == 4:
        side = _side(x.shape[1])
        return resized(x.transpose(1, 2).unflatten(2, (side, side)), shape)
    if x.dim() == 4 and len(shape) == 3:
        side = _side(shape[1])
        return resized(x, Size((*x.shape[:2], side, side))).flatten(2).transpose(1, 2)
    if x.dim() == 4 and x.shape[2] >= shape[2] and x.shape[3] >= shape[3]:
        return F.adaptive_avg_pool2d(x, (shape[2], shape[3]))
    if x.dim() == 4:
        return F.interpolate(x, size=shape[2:], mode="bilinear")
    got = f"features {list(x.shape)} for {list(shape)}"
    raise Incompatible("a projector", need="features at the same places", got=got, fit="another tap")


def _side(tokens: int) -> int:
    side = round(tokens**0.5)
    if side * side != tokens:
        raise Incompatible("a projector", need="a square number of tokens", got=str(tokens), fit="another tap")
    return side


class Projector(ABC):
    """How features are projected. A subclass is a frozen dataclass whose `build` makes the module."""

    learns: ClassVar[bool] = True
    """Whether it has parameters."""

    @abstractmethod
    def build(self, student: Size, teacher: Size) -> nn.Module:
        """A module from features of the student's shape to the teacher's."""


@dataclass(frozen=True)
class Same(Projector):
    """Features as they are, at the teacher's places.

    Raises:
        Incompatible: other numbers of channels.

    >>> Same().build(torch.Size([8, 16, 4, 4]), torch.Size([8, 16, 2, 2]))(torch.ones(3, 16, 4, 4)).shape
    torch.Size([3, 16, 2, 2])
    """

    learns = False

    def build(self, student: Size, teacher: Size) -> nn.Module:
        if channels(student) != channels(teacher):
            need, got = f"{channels(teacher)} channels", str(channels(student))
            raise Incompatible("Same()", need=need, got=got, fit="Projection()")
        return Places(nn.Identity(), teacher)


@dataclass(frozen=True)
class Unchanged(Projector):
    """Features as they are, of any shape: for losses that compare relations of examples.

    >>> Unchanged().build(torch.Size([8, 16, 4, 4]), torch.Size([8, 5]))(torch.ones(3, 16, 4, 4)).shape
    torch.Size([3, 16, 4, 4])
    """

    learns = False

    def build(self, student: Size, teacher: Size) -> nn.Module:
        return nn.Identity()


@dataclass(frozen=True, kw_only=True)
class Projection(Projector):
    """A linear map of the channels, or a perceptron, at each place; maps and tokens are brought to the same places.

    Args:
        layers: of the perceptron; 1 is linear.
        bias: on the last of them.

    >>> Projection().build(torch.Size([8, 16, 4, 4]), torch.Size([8, 32, 2, 2]))(torch.ones(3, 16, 4, 4)).shape
    torch.Size([3, 32, 2, 2])
    """

    layers: int = 1
    bias: bool = True

    def __post_init__(self) -> None:
        in_range("layers", self.layers, 1)

    def build(self, student: Size, teacher: Size) -> nn.Module:
        width, out = channels(student), channels(teacher)
        parts: list[nn.Module] = []
        for _ in range(self.layers - 1):
            parts += [nn.Linear(width, out), nn.GELU()]
            width = out
        return Places(nn.Sequential(*parts, nn.Linear(width, out, bias=self.bias)), teacher)


class Places(nn.Module):
    """A module on channels, at each of the places that features of a shape have.

    Args:
        inner: [..., c] → [..., d].
        shape: of features [B, …] whose places are wanted.
    """

    def __init__(self, inner: nn.Module, shape: Size):
        super().__init__()
        self.inner, self.shape = inner, shape

    def forward(self, x: Tensor) -> Tensor:
        """Features of d channels at the shape's places, of those of c channels at any."""
        x = resized(x, self.shape)
        if x.dim() != 4:
            return self.inner(x)
        only = self.inner[0] if isinstance(self.inner, nn.Sequential) and len(self.inner) == 1 else None
        if isinstance(only, nn.Linear):  # as a convolution, which need not move the channels
            return F.conv2d(x, only.weight[:, :, None, None], only.bias)
        return self.inner(x.movedim(1, -1)).movedim(-1, 1)


@dataclass(frozen=True)
class Orthogonal(Projector):
    """Pᵀx with orthonormal rows P, PPᵀ = 1: the first d_s rows of (1 − A)⁻¹(1 + A), A = W − Wᵀ, W [d_t, d_t].

    Inner products are kept, so that the projector cannot learn what the student should.

    Raises:
        Incompatible: more channels than the teacher has.

    Source: V_kD, Miles et al. 2024, arXiv 2403.06213; the map of A to rotations is Cayley's here.

    >>> made = Orthogonal().build(torch.Size([8, 3]), torch.Size([8, 5]))
    >>> x = torch.randn(4, 3)
    >>> bool(torch.allclose(made(x) @ made(x).T, x @ x.T, atol=1e-5))
    True
    """

    def build(self, student: Size, teacher: Size) -> nn.Module:
        if (few := channels(student)) > (many := channels(teacher)):
            need, got = f"at most the teacher's {many} channels", str(few)
            raise Incompatible("Orthogonal()", need=need, got=got, fit="Projection()")
        return Places(OrthogonalLinear(few, many), teacher)


class OrthogonalLinear(nn.Module):
    """x → x·P with P [d_s, d_t] of orthonormal rows; see `Orthogonal`."""

    def __init__(self, few: int, many: int):
        super().__init__()
        self.few, self.weight = few, nn.Parameter(torch.randn(many, many) / many**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Features of d_t channels, of those of d_s."""
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight.float() if self.weight.dtype.itemsize < 4 else self.weight
            skew, one = weight - weight.T, torch.eye(len(weight), device=x.device, dtype=weight.dtype)
            rows = torch.linalg.solve(one - skew, one + skew)[: self.few]
            return x.to(rows) @ rows


__all__ = ["Orthogonal", "Places", "Projection", "Projector", "Same", "Unchanged", "channels", "resized"]
