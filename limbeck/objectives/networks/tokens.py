"""Objectives on logits of sequences: every labelled token is an example of its own, and every sequence counts once."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.engine.objective import Loss, Objective, Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Tick
from limbeck.errors import Incompatible
from limbeck.objectives.networks.logits import KD, CrossEntropy, OnLogits, both_logits, logits

UNLABELLED = -100
"""What the label of a token is that does not count, as in `torch.nn.functional.cross_entropy`."""


def token_mean(value: Tensor, counts: Tensor) -> Tensor:
    """The mean over the tokens that count, [B]; 0 where none does.

    Args:
        value: of those tokens alone, sequence after sequence, [M].
        counts: which they are, boolean [B, L] with M that are true.

    >>> token_mean(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([[True, True], [False, True], [False, False]]))
    tensor([2., 5., 0.])
    """
    of = counts.nonzero()[:, 0]
    total = value.new_zeros(len(counts)).index_add(0, of, value)
    return total / counts.sum(1).clamp_min(1)


@dataclass(frozen=True, kw_only=True)
class PerToken(Objective):
    """A loss of logits [B, L, V] token by token: its mean over the tokens that have a label, [B].

    Labels y [B, L] say which tokens count, whether the loss wants labels or not; others are `UNLABELLED`. For a causal
    language model the label of a token is the next one; for a masked one it is what was hidden there.

    Args:
        of: a loss of logits, `CrossEntropy` among them. One that is ``coupled`` compares all tokens of the batch.

    Raises:
        Incompatible: what ``of`` does not fit, data without labels, and labels that are not one for each token.

    >>> from torch import nn
    >>> from limbeck import Dataset, distill
    >>> data = Dataset(x=torch.randn(9, 5, 4), y=torch.arange(45).view(9, 5) % 3)
    >>> run = distill(nn.Linear(4, 3), nn.Linear(4, 3), PerToken(of=KD()), data, steps=1, batch=8)
    >>> sorted(next(iter(run)).losses)
    ['kd of tokens']
    """

    of: OnLogits | CrossEntropy = KD(alpha=1.0)

    def check(self, cast: Cast) -> None:
        if not isinstance(self.of, CrossEntropy) and type(self.of).terms is not OnLogits.terms:
            need, got = "a loss of the logits of two networks", f"a {type(self.of).__name__}"
            raise Incompatible("PerToken", need=need, got=got, fit="of=KD()")
        self.of.check(cast)
        cast.need_fields("x", "y", by=self)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        (term,) = self.of.terms(cast)
        return (Term(f"{term.name} of tokens", self.of.student, self._loss, coupled=term.coupled, of=self),)

    def _loss(self, tick: Tick) -> Loss:
        of, y = self.of, tick.batch["y"]
        if isinstance(of, CrossEntropy):
            counts = _labelled(y, s := logits(tick, of.student))
            value = F.cross_entropy(s[counts], y[counts], reduction="none", label_smoothing=of.smoothing)
            return Loss(token_mean(value, counts))
        s, t = both_logits(tick, of, of.student, of.teacher)
        counts, flat = _labelled(y, s), copy.copy(tick)
        flat.batch = {**tick.batch, "y": y[counts]}
        with torch.autocast(s.device.type, enabled=False):
            return _per_example(of.value(s[counts], t[counts], flat), counts)


def _labelled(y: Tensor, s: Tensor) -> Tensor:
    """Which tokens have a label, boolean [B, L]."""
    if s.dim() != 3 or y.shape != s.shape[:2] or y.is_floating_point():
        need, got = "labels y [B, L] beside logits [B, L, V]", f"y {list(y.shape)} beside {list(s.shape)}"
        raise Incompatible("PerToken", need=need, got=got)
    return y != UNLABELLED


def _per_example(made: Tensor | Loss, counts: Tensor) -> Loss:
    """A loss of tokens as one of sequences; where tokens have weights, so have these, the mean of them."""
    value, weight = (made.value, made.weight) if isinstance(made, Loss) else (made, None)
    if value.dim() == 0:
        return Loss(value)
    if weight is None:
        return Loss(token_mean(value, counts))
    share = token_mean(weight, counts)
    return Loss(token_mean(value * weight, counts) / torch.where(share > 0, share, 1), share)


__all__ = ["UNLABELLED", "PerToken", "token_mean"]
