"""A student without attention mimics a transformer's: its queries, keys and values are partly the teacher's."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck.engine.objective import Loss, Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Tick
from limbeck.errors import BadSetting, Incompatible, in_range
from limbeck.objectives.networks.across import Convolution, tokens
from limbeck.objectives.networks.features import mean_square, one_each
from limbeck.objectives.networks.logits import Between, wide

Parts = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values, [B, N, D] each."""


def attention(parts: Parts, *, heads: int = 1) -> Tensor:
    """softmax(QKᵀ/√d)·V in every head, d = D/heads; heads side by side, [B, N, D].

    Args:
        parts: Q, K, V, [B, N, D] each.
        heads: how many.

    >>> x = torch.ones(1, 4, 6)
    >>> bool(torch.allclose(attention((x, x, x), heads=2), x))
    True
    """
    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in parts)
    weights = (q @ k.mT / q.shape[3] ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def value_relations(v: Tensor) -> Tensor:
    """VVᵀ/√D, the products of all pairs of places, [B, N, N].

    >>> value_relations(torch.ones(1, 2, 4))
    tensor([[[2., 2.],
             [2., 2.]]])
    """
    return v @ v.mT / v.shape[2] ** 0.5


def mixed_in(student: Tensor, teacher: Tensor, scores: Tensor, share: float) -> Tensor:
    """The student's numbers, each replaced by the teacher's where its score is below the share; all of one shape.

    >>> mixed_in(torch.zeros(3), torch.ones(3), torch.tensor([0.1, 0.5, 0.9]), 0.5)
    tensor([1., 0., 0.])
    """
    return torch.where(scores < share, teacher, student)


@dataclass(frozen=True, kw_only=True)
class PartialCrossAttention(Between):
    """mean (A(Q_T, K_T, V_T) − A(g(Q_S), g(K_S), g(V_S)))² + mean (V_T·V_Tᵀ − V_S·V_Sᵀ)²/D.

    A is `attention`; Q_S, K_S and V_S are 3 × 3 convolutions of the student's features at the teacher's places, and g
    replaces each of their numbers by the teacher's, with probability ``share``.

    Args: those of `Between`.
        tap: of the student; a name, see `tap`.
        parts: taps of the teacher's queries, keys and values.
        heads: of the teacher's attention.
        share: probability to be replaced; at 1 the first term is 0.

    Raises:
        BadSetting: no tap, not three parts, a share outside [0, 1].
        Incompatible: no teacher or data with x, no such taps, tokens that are no square, heads that do not divide.

    Source: Liu et al. 2022, arXiv 2207.05273, whose norms are sums.

    >>> from limbeck import Dataset, distill
    >>> teacher = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Flatten())
    >>> student = nn.Sequential(nn.Conv2d(1, 5, 1), nn.Flatten())
    >>> objective = PartialCrossAttention(tap="0", parts=("0", "1", "2"), heads=2)
    >>> run = distill(teacher, student, objective, Dataset(x=torch.randn(9, 1, 4, 4)), steps=1, batch=8)
    >>> sorted(next(iter(run)).losses)
    ['partialcrossattention']
    """

    tap: str = ""
    parts: tuple[str, ...] = ()
    heads: int = 1
    share: float = 0.5

    def __post_init__(self) -> None:
        in_range("share", self.share, 0, 1)
        in_range("heads", self.heads, 1)
        if not self.tap or len(self.parts) != 3:
            name, got = type(self).__name__, f"tap={self.tap!r} and parts={self.parts!r}"
            raise BadSetting(f"{name} needs a tap of the student and three parts of the teacher, got {got}.")

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        for who, taps in ((self.student, (self.tap,)), (self.teacher, self.parts)):
            one_each(cast.tap(who, *taps, by=self), taps, by=self)
        role = f"{self.name} projector {self.tap}"
        convs = cast.role(role, lambda: self._built(cast), spec=self).module
        assert isinstance(convs, nn.ModuleList)

        def loss(tick: Tick) -> Loss:
            seen, known = tick.answer(self.student).features[self.tap], tick.answer(self.teacher).features
            made = [conv(seen) for conv in convs]
            with torch.autocast(seen.device.type, enabled=False):
                ours = [wide(tokens(x)) for x in made]
                theirs = [wide(tokens(known[name])).detach() for name in self.parts]
                return Loss(self.value(ours, theirs, tick))

        return (Term(self.name, (self.student, role), loss, of=self),)

    def value(self, ours: list[Tensor], theirs: list[Tensor], tick: Tick) -> Tensor:
        """The loss, [B], of queries, keys and values, [B, N, D] each."""
        rng = tick.rng((self, "replaced"))
        mixed = [mixed_in(s, t, rng.uniform(*t.shape).to(t), self.share) for s, t in zip(ours, theirs, strict=True)]
        known, seen = (attention((q, k, v), heads=self.heads) for q, k, v in (theirs, mixed))
        return mean_square(seen, known) + mean_square(value_relations(ours[2]), value_relations(theirs[2]))

    def _built(self, cast: Cast) -> nn.ModuleList:
        shape, known = cast.dry(self.student).features[self.tap].shape, cast.dry(self.teacher).features
        for name in self.parts:
            if (width := tokens(known[name]).shape[2]) % self.heads:
                need, got = f"heads that divide the {width} channels of {name!r}", str(self.heads)
                raise Incompatible(type(self).__name__, need=need, got=got)
        made = nn.ModuleList(Convolution().build(shape, known[name].shape) for name in self.parts)
        return made.to(next(cast.module(self.student).parameters()))


__all__ = ["PartialCrossAttention", "attention", "mixed_in", "value_relations"]
