"""Two networks that learn to see without labels: each from its own moving average, and from the other's."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from limbeck.engine.objective import Loss, Objective, Term
from limbeck.engine.optim import EMA
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Tick
from limbeck.errors import BadSetting, Incompatible, above_zero, in_range
from limbeck.objectives.networks.contrast import info_nce, pairs_of
from limbeck.objectives.networks.logits import logits, wide
from limbeck.objectives.networks.online import need_peer


@dataclass(frozen=True, kw_only=True)
class MultiMode(Objective):
    """`info_nce` of each of two students by its own moving average and, times λ, by the other's.

    Inputs x and ``pair`` are two views of one example; averages see the one that the student does not.

    Args:
        peer: the name of the other one, ``distill(None, {"student": ..., "peer": ...}, ...)``.
        weight: λ.
        temperature: τ.
        ema: of the averages.

    Raises:
        BadSetting: a weight below 0, a temperature that is not above 0, a peer without a name of its own.
        Incompatible: no second student, students of different numbers of outputs, no inputs x and pair, a
            batch of one or that is cut.

    Source: MOKD, Song et al. 2023, arXiv 2304.06461, for self- and cross-distillation between two networks; without
    its heads that search the other's features by attention, and by contrast within the batch.

    >>> from torch import nn
    >>> from limbeck import Dataset, distill
    >>> data = Dataset(x=torch.randn(9, 4), pair=torch.randn(9, 4))
    >>> nets = {"student": nn.Linear(4, 8), "peer": nn.Linear(4, 8)}
    >>> sorted(next(iter(distill(None, nets, MultiMode(), data, steps=1, batch=8))).losses)
    ['multimode peer', 'multimode student']
    """

    coupled: ClassVar[bool] = True
    peer: str = "peer"
    weight: float = 1.0
    temperature: float = 0.1
    ema: EMA = EMA(decay=0.99)

    def __post_init__(self) -> None:
        in_range("weight", self.weight, 0)
        above_zero("temperature", self.temperature)
        if self.peer == "student":
            raise BadSetting("the peer needs a name of its own, got 'student'.")

    def check(self, cast: Cast) -> None:
        need_peer(cast, self.peer, by=self)
        cast.need_fields("x", "pair", by=self)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        means = {who: cast.target(who, self.ema) for who in ("student", self.peer)}

        def towards(own: Tensor, tick: Tick, whom: str, field: str) -> Tensor:
            with torch.no_grad(), tick.seeded(("average", whom, field)):
                # a module puts out what a network does, which `check` has asked for
                theirs: Tensor = wide(means[whom](tick.batch[field]))
            if own.shape != theirs.shape:
                need, got = f"networks of {theirs.shape[-1]} outputs", str(own.shape[-1])
                raise Incompatible(type(self).__name__, need=need, got=got)
            return info_nce(pairs_of(own, by=self), theirs.flatten(1), temperature=self.temperature)

        def term(who: str, other: str) -> Term:
            def loss(tick: Tick) -> Loss:
                one, two = logits(tick, who), wide(_out(tick, who))

                def total(whom: str) -> Tensor:
                    return towards(one, tick, whom, "pair") + towards(two, tick, whom, "x")

                value = total(who) + self.weight * total(other) if self.weight else total(who)
                return Loss(value.mean() / 2)

            return Term(f"multimode {who}", who, loss, coupled=True, of=self)

        return term("student", self.peer), term(self.peer, "student")


def _out(tick: Tick, who: str) -> Tensor:
    out = tick.answer(who, tick.batch["pair"], key="pair").out
    assert out is not None
    return out


__all__ = ["MultiMode"]
