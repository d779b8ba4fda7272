"""Objectives on pairs of features: taps of the student beside those of the teacher, with a projector."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.engine.objective import Loss, Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Tick
from limbeck.errors import BadSetting, Incompatible
from limbeck.objectives.networks.logits import Between, wide
from limbeck.objectives.networks.projectors import Projection, Projector

Pairs = tuple[tuple[str, str], ...]
"""(tap of the student, tap of the teacher), each the name of one submodule."""


@dataclass(frozen=True, kw_only=True)
class OnFeatures(Between):
    """A loss of pairs of features, Σ over pairs. A subclass is a frozen dataclass with `value`.

    Args: those of `Between`.
        pairs: taps of the student and the teacher's beside them, ``{"blocks.1": "layer3"}``; names, see `tap`.
        projector: of the student's features.
    """

    pairs: Pairs | Mapping[str, str] = ()
    projector: Projector = field(default_factory=Projection)

    def __post_init__(self) -> None:
        if isinstance(self.pairs, Mapping):
            object.__setattr__(self, "pairs", tuple(self.pairs.items()))
        if not self.pairs:
            raise BadSetting(f"{type(self).__name__} needs pairs of taps, such as pairs={{'blocks.1': 'layer3'}}.")

    @abstractmethod
    def value(self, student: Tensor, teacher: Tensor, tick: Tick) -> Tensor:
        """The loss of one pair, [B], or [] where it is ``coupled``: projected features of the student, the teacher's.

        Their shapes are equal, unless the projector leaves them as they are.
        """

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        names = dict(zip((self.student, self.teacher), zip(*self.pairs, strict=True), strict=True))
        for who, taps in names.items():
            one_each(cast.tap(who, *taps, by=self), taps, by=self)
        said = ", ".join(" → ".join(pair) for pair in self.pairs)  # one for each objective: projectors are not shared
        role = (f"{self.name} projector {said}",) if self.projector.learns else ()
        modules = cast.role(*role, lambda: self._built(cast), spec=self).module if role else self._built(cast)
        assert isinstance(modules, nn.ModuleList)

        def loss(tick: Tick) -> Loss:
            seen, known = (tick.answer(who).features for who in names)
            pairs = [(seen[mine], known[theirs]) for mine, theirs in self.pairs]
            projected = [(module(s), t) for module, (s, t) in zip(modules, pairs, strict=True)]
            with torch.autocast(projected[0][0].device.type, enabled=False):
                parts = [self.value(wide(s), wide(t), tick) for s, t in projected]
            return Loss(sum(parts[1:], parts[0]))

        return (Term(self.name, (self.student, *role), loss, coupled=self.coupled, of=self),)

    def _built(self, cast: Cast) -> nn.ModuleList:
        """A projector for each pair, sized by what a few rows of data give."""
        seen, known = (cast.dry(who).features for who in (self.student, self.teacher))
        made = [self.projector.build(seen[mine].shape, known[theirs].shape) for mine, theirs in self.pairs]
        return nn.ModuleList(made).to(next(cast.module(self.student).parameters()))


def one_each(found: tuple[str, ...], picks: tuple[str, ...], by: object) -> None:
    """Raises `Incompatible` unless every pick is the name of one submodule."""
    if set(found) != set(picks):
        need, got = "one submodule for each tap", f"{len(found)} for {', '.join(map(repr, picks))}"
        raise Incompatible(type(by).__name__, need=need, got=got, fit="their names instead of globs")


def mean_square(student: Tensor, teacher: Tensor) -> Tensor:
    """mean (s − t)² over all numbers of each example, [B].

    Args:
        student: features s, [B, …].
        teacher: features t, of the same shape.

    >>> import torch
    >>> mean_square(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))
    tensor([12.5000])
    """
    return _MeanSquare.apply(student, teacher)


class _MeanSquare(torch.autograd.Function):
    """Its gradient 2·(s − t)/n takes one tensor of their size, where a power and a mean take four."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        ctx.save_for_backward(student, teacher)
        size = torch.linalg.vector_norm((student - teacher).flatten(1), dim=1)
        return size.square() * (len(student) / student.numel())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        student, teacher = ctx.saved_tensors
        scale = grads[0] * (2 * len(student) / student.numel())
        grad = (student - teacher).mul_(scale.view(-1, *[1] * (student.dim() - 1)))
        needs = ctx.needs_input_grad
        return grad if needs[0] else None, -grad if needs[1] else None


@dataclass(frozen=True, kw_only=True)
class FitNets(OnFeatures):
    """Hints: mean (P·s − t)² between projected features of the student and the teacher's.

    Args: those of `OnFeatures`.

    Raises:
        BadSetting: no pairs.
        Incompatible: no such taps, features that the projector cannot bring together, no data with x.

    Source: Romero et al. 2014, arXiv 1412.6550; hints count all the time here, beside other losses, where the
    paper trains the lower half by them first.

    >>> import torch
    >>> from limbeck import Dataset, distill
    >>> teacher = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> student = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> run = distill(teacher, student, FitNets(pairs={"1": "1"}), Dataset(x=torch.randn(9, 4)), steps=1, batch=8)
    >>> sorted(next(iter(run)).losses)
    ['fitnets']
    """

    def value(self, student: Tensor, teacher: Tensor, tick: Tick) -> Tensor:
        return mean_square(student, teacher)


__all__ = ["FitNets", "OnFeatures", "mean_square"]
