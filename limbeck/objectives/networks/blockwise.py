"""StableKD: each block of a student learns alone from the teacher's features, before blocks are joined again."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck.engine.objective import Loss, Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Tick
from limbeck.errors import Incompatible, above_zero, in_range
from limbeck.objectives.networks.features import OnFeatures, mean_square, one_each
from limbeck.objectives.networks.logits import KD, logits, wide
from limbeck.objectives.networks.steering import outputs, steered


def cuts(pairs: int, progress: float, until: float) -> tuple[int, ...]:
    """Which of so many places between blocks are cut: all at first, every other, every fourth …, none from `until` on.

    Args:
        pairs: how many places there are, one less than blocks.
        progress: in [0, 1).
        until: progress at which the last ones are gone; every division lasts as long as the others.

    >>> [cuts(3, progress, 0.5) for progress in (0.0, 0.3, 0.5)]
    [(0, 1, 2), (1,), ()]
    """
    rounds = math.ceil(math.log2(pairs + 1))
    if progress >= until:
        return ()
    joined = 2 ** int(progress / until * rounds)
    return tuple(k for k in range(pairs) if (k + 1) % joined == 0)


@dataclass(frozen=True, kw_only=True)
class StableKD(OnFeatures):
    """Σ over cuts of mean (s − A·t)², and α·T²·KL + (1 − α)·CE of the logits, in one pass of a student cut in pieces.

    Behind a cut the student goes on from the teacher's features t, adapted by a projector A that learns with it, and
    not from its own s: no loss of a piece moves another. So each piece learns what the next one is used to. Pieces
    are joined two by two, until the student is whole and learns from the logits alone.

    Args: those of `OnFeatures`, with every place between two blocks as a pair, in order; the projector is of the
            teacher's features.
        until: progress from which the student is whole.
        hints: weight of the features.
        temperature: T.
        alpha: α, the weight of the teacher; 1 needs no labels.

    Raises:
        BadSetting: no pairs, a setting out of its range.
        Incompatible: no teacher, no such taps, no inputs x, no labels y where α < 1.

    Source: Kao et al. 2023, arXiv 2312.13223, for the idea of decomposition and recomposition; how long each
    division lasts, and that features are compared where the student has them, are ours.

    >>> import torch
    >>> from limbeck import Dataset, distill
    >>> teacher = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> student = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> data = Dataset(x=torch.randn(9, 4), y=torch.arange(9) % 3)
    >>> run = distill(teacher, student, StableKD(pairs={"1": "1"}), data, steps=1, batch=8)
    >>> sorted(next(iter(run)).losses)
    ['stablekd']
    """

    until: float = 0.5
    hints: float = 1.0
    temperature: float = 4.0
    alpha: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("until", self.until, 0, 1)
        in_range("hints", self.hints, 0)
        in_range("alpha", self.alpha, 0, 1)
        above_zero("temperature", self.temperature)

    @property
    def fields(self) -> tuple[str, ...]:
        return ("x", "y") if self.alpha < 1 else ("x",)

    def value(self, student: Tensor, teacher: Tensor, tick: Tick) -> Tensor:
        return mean_square(student, teacher)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        mine, theirs = zip(*self.pairs, strict=True)
        for who, taps in ((self.student, mine), (self.teacher, theirs)):
            one_each(cast.tap(who, *taps, by=self), taps, by=self)
        outputs(mine, by=self)
        role = f"{self.name} adaptors {', '.join(' → '.join(pair) for pair in self.pairs)}"
        modules = cast.role(role, lambda: self._adaptors(cast), spec=self).module
        assert isinstance(modules, nn.ModuleList)
        places = [*zip(mine, theirs, modules, strict=True)]

        def loss(tick: Tick) -> Loss:
            known, told = tick.answer(self.teacher).features, dict[str, Tensor]()
            for k in cuts(len(places), tick.progress, self.until):
                name, other, adaptor = places[k]
                told[name] = adaptor(known[other])
            with steered(tick.cast.module(self.student), {s: lambda _, x=x: x for s, x in told.items()}) as made:
                out = tick.cast.ask(self.student, tick.batch["x"]).out
            assert out is not None
            value = self._logits(wide(out), tick)
            for s, x in told.items():
                value = value + self.hints * self.value(wide(made[s]), wide(x), tick)
            return Loss(value)

        return (Term(self.name, (self.student, role), loss, of=self),)

    def _logits(self, student: Tensor, tick: Tick) -> Tensor:
        known = logits(tick, self.teacher)
        if student.shape != known.shape:
            need, got = f"a {self.student} with {known.shape[-1]} classes", str(student.shape[-1])
            raise Incompatible("StableKD", need=need, got=got)
        kd = KD(temperature=self.temperature, alpha=self.alpha)
        with torch.autocast(student.device.type, enabled=False):
            return kd.value(student, known, tick)

    def _adaptors(self, cast: Cast) -> nn.ModuleList:
        """For each cut a projector of the teacher's features to the shape of the student's."""
        seen, known = (cast.dry(who).features for who in (self.student, self.teacher))
        made = [self.projector.build(known[theirs].shape, seen[mine].shape) for mine, theirs in self.pairs]
        return nn.ModuleList(made).to(next(cast.module(self.student).parameters()))


__all__ = ["StableKD", "cuts"]
