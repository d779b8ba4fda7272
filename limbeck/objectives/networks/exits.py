"""Exits of one encoder that all learn to tell what belongs together, so that it can be cut at any of them."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from limbeck.engine.objective import Loss, Objective, Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Tick
from limbeck.errors import BadSetting, above_zero
from limbeck.objectives.networks.contrast import info_nce, pairs_of
from limbeck.objectives.networks.features import one_each
from limbeck.objectives.networks.logits import wide


def both_ways(one: Tensor, two: Tensor, *, temperature: float = 0.1) -> Tensor:
    """½·(`info_nce` of a by b + that of b by a): either is to find the other, [B].

    Args:
        one: a, [B, D].
        two: b, [B, D].
        temperature: τ.

    Source: Radford et al. 2021, arXiv 2103.00020, for the symmetric form.

    >>> import torch
    >>> both_ways(torch.ones(4, 2), torch.ones(4, 2))
    tensor([1.3863, 1.3863, 1.3863, 1.3863])
    """
    return 0.5 * (info_nce(one, two, temperature=temperature) + info_nce(two, one, temperature=temperature))


@dataclass(frozen=True, kw_only=True)
class ExitContrast(Objective):
    """Σ_k w_k·`both_ways` of the student's features at tap k, of inputs x and of what belongs to them, ``pair``.

    One encoder reads both. Nothing passes from later taps to earlier ones but the layers that they share.

    Args:
        taps: exits of the student, the first one first; names, see `tap`.
        weights: of exits; by default k/n for the k-th of n, so that the last counts most.
        temperature: τ.
        student: the name of who learns.

    Raises:
        BadSetting: no taps, weights that are not as many or not above 0, a temperature that is not above 0.
        Incompatible: no such taps, no inputs x or pair, a batch of one or that is cut.

    Source: ModularStarEncoder, Gurioli et al. 2025, arXiv 2503.03008, for one contrastive loss at several exits of an
    encoder; the weights are ours.

    >>> import torch
    >>> from torch import nn
    >>> from limbeck import Dataset, distill
    >>> student = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8))
    >>> data = Dataset(x=torch.randn(9, 4), pair=torch.randn(9, 4))
    >>> sorted(next(iter(distill(None, student, ExitContrast(taps=("1", "2")), data, steps=1, batch=8))).losses)
    ['exitcontrast']
    """

    coupled: ClassVar[bool] = True
    taps: tuple[str, ...] = ()
    weights: tuple[float, ...] | None = None
    temperature: float = 0.1
    student: str = "student"

    def __post_init__(self) -> None:
        above_zero("temperature", self.temperature)
        if not self.taps:
            raise BadSetting("ExitContrast needs taps of the student, such as taps=('blocks.1', 'blocks.3').")
        if len(self.shares) != len(self.taps):
            raise BadSetting(f"ExitContrast needs a weight for each of {len(self.taps)} taps, got {len(self.shares)}.")
        for weight in self.shares:
            above_zero("a weight of ExitContrast", weight)

    @property
    def shares(self) -> tuple[float, ...]:
        """The weight of each exit."""
        n = len(self.taps)
        return self.weights if self.weights is not None else tuple((k + 1) / n for k in range(n))

    def check(self, cast: Cast) -> None:
        cast.need_network(self.student, by=self)
        cast.need_fields("x", "pair", by=self)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        one_each(cast.tap(self.student, *self.taps, by=self), self.taps, by=self)

        def loss(tick: Tick) -> Loss:
            one, two = tick.answer(self.student), tick.answer(self.student, tick.batch["pair"], key="pair")
            value = one.features[self.taps[0]].new_zeros(())
            for name, weight in zip(self.taps, self.shares, strict=True):
                a, b = (pairs_of(wide(seen.features[name]), by=self) for seen in (one, two))
                value = value + weight * both_ways(a, b, temperature=self.temperature).mean()
            return Loss(value)

        name = "exitcontrast" if self.student == "student" else f"exitcontrast {self.student}"
        return (Term(name, self.student, loss, coupled=True, of=self),)


__all__ = ["ExitContrast", "both_ways"]
