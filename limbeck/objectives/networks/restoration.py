"""A network that restores images learns from one that has seen a better version of each: directions and bands."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.engine.objective import Loss, Objective, Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Tick
from limbeck.errors import BadSetting, Incompatible, above_zero, in_range
from limbeck.objectives.networks.contrast import info_nce, pairs_of
from limbeck.objectives.networks.features import mean_square, one_each
from limbeck.objectives.networks.logits import Between, wide


def direction(student: Tensor, teacher: Tensor) -> Tensor:
    """1 − cos of the angle between features of an example, all of its numbers as one vector, [B].

    Args:
        student: features, [B, …].
        teacher: features, of the same shape.

    Source: GloReDi, Li et al. 2023, arXiv 2308.08463.

    >>> direction(torch.tensor([[1.0, 1.0]]), torch.tensor([[5.0, 5.0]])).abs() < 1e-6
    tensor([True])
    """
    return 1 - F.cosine_similarity(student.flatten(1), teacher.flatten(1), dim=1)


def one_place(x: Tensor) -> Tensor:
    """Vectors [B, C] as maps [B, C, 1, 1], all else as it is."""
    return x[..., None, None] if x.dim() == 2 else x


def band(x: Tensor, low: float, high: float) -> Tensor:
    """The part of maps [B, C, H, W] whose frequencies have a radius in [low, high), in cycles per pixel, same shape.

    >>> x = torch.rand(1, 1, 4, 4)
    >>> bool(torch.allclose(band(x, 0.0, 0.25) + band(x, 0.25, 1.0), x, atol=1e-6))
    True
    """
    rows, columns = (torch.fft.fftfreq(n, device=x.device, dtype=x.dtype) for n in x.shape[2:])
    radius = (rows[:, None] ** 2 + columns[None] ** 2).sqrt()
    kept = (radius >= low) & (radius < high)
    return torch.fft.ifft2(torch.fft.fft2(x) * kept).real


@dataclass(frozen=True, kw_only=True)
class Restoration(Objective):
    """mean (f(x) − y)² over the numbers of an example: plain training of a network that restores y from x.

    Args:
        student: the name of who learns.
        field: of what it sees.

    Raises:
        Incompatible: no inputs or images y, outputs of another shape.

    >>> from torch import nn
    >>> from limbeck import Dataset, distill
    >>> data = Dataset(x=torch.randn(9, 4), y=torch.randn(9, 4))
    >>> sorted(next(iter(distill(None, nn.Linear(4, 4), Restoration(), data, steps=1, batch=8))).losses)
    ['restoration']
    """

    student: str = "student"
    field: str = "x"

    def check(self, cast: Cast) -> None:
        cast.need_network(self.student, by=self)
        cast.need_fields(*dict.fromkeys(("x", self.field, "y")), by=self)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        def loss(tick: Tick) -> Loss:
            out, y = tick.answer(self.student, tick.batch[self.field], key=self.field).out, tick.batch["y"]
            assert out is not None
            if out.shape != y.shape:
                need, got = f"a {self.student} whose outputs are {list(y.shape)}, as y is", str(list(out.shape))
                raise Incompatible(type(self).__name__, need=need, got=got)
            return Loss(mean_square(wide(out), y))

        name = "restoration" if self.student == "student" else f"restoration {self.student}"
        return (Term(name, self.student, loss, of=self),)


@dataclass(frozen=True, kw_only=True)
class BetterViews(Between):
    """Features of the student at x follow the teacher's at a better version of x, ``pair``.

    `direction` + λ·`info_nce` of one `band` of both, where the negatives of an example are the rest of the batch and
    what the teacher makes of the poor x itself. Vectors are maps of one place, all of frequency 0.

    Args: those of `Between`.
        tap: of both networks; a name, see `tap`.
        weight: λ.
        low: of the band, in cycles per pixel.
        high: of the band.
        temperature: τ.

    Raises:
        BadSetting: no tap, a weight below 0, a band that is empty, a temperature that is not above 0.
        Incompatible: no teacher, no such tap, features that are no maps or differ in shape, no inputs x or pair.

    Source: GloReDi, Li et al. 2023, arXiv 2308.08463, for the two losses; its band and its negatives are ours.

    >>> from torch import nn
    >>> from limbeck import Dataset, distill
    >>> net = lambda: nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 1))
    >>> data = Dataset(x=torch.randn(9, 1, 6, 6), pair=torch.randn(9, 1, 6, 6))
    >>> sorted(next(iter(distill(net(), net(), BetterViews(tap="0"), data, steps=1, batch=8))).losses)
    ['betterviews']
    """

    coupled: ClassVar[bool] = True
    tap: str = ""
    weight: float = 0.1
    low: float = 0.25
    high: float = 1.0
    temperature: float = 0.1

    def __post_init__(self) -> None:
        in_range("weight", self.weight, 0)
        above_zero("temperature", self.temperature)
        if not self.tap:
            raise BadSetting("BetterViews needs a tap of both networks, such as tap='encoder'.")
        if not 0 <= self.low < self.high:
            raise BadSetting(f"BetterViews needs a band with 0 ≤ low < high, got {self.low} and {self.high}.")

    @property
    def fields(self) -> tuple[str, ...]:
        return ("x", "pair")

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        for who in (self.student, self.teacher):
            one_each(cast.tap(who, self.tap, by=self), (self.tap,), by=self)

        def loss(tick: Tick) -> Loss:
            seen = tick.answer(self.student), tick.answer(self.teacher, tick.batch["pair"], key="pair")
            s, t, poor = (one_place(wide(a.features[self.tap])) for a in (*seen, tick.answer(self.teacher)))
            if s.shape != t.shape or s.dim() != 4:
                need, got = f"maps {list(t.shape)} of both networks", str(list(s.shape))
                raise Incompatible(type(self).__name__, need=need, got=got)
            value = direction(s, t).mean()
            if self.weight:
                parts = (pairs_of(band(z, self.low, self.high), by=self) for z in (s, t, poor))
                value = value + self.weight * self._contrast(*parts)
            return Loss(value)

        return (Term(self.name, self.student, loss, coupled=True, of=self),)

    def _contrast(self, student: Tensor, teacher: Tensor, poor: Tensor) -> Tensor:
        return info_nce(student, teacher, temperature=self.temperature, others=poor[:, None]).mean()


__all__ = ["BetterViews", "Restoration", "band", "direction"]
