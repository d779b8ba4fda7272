"""Attention of a transformer as another learns it: where its tokens look, and which of their values are alike."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.engine.objective import Loss, Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Tick
from limbeck.errors import BadSetting, Incompatible, in_range
from limbeck.objectives.networks.across import tokens
from limbeck.objectives.networks.crossing import Parts
from limbeck.objectives.networks.features import Pairs, one_each
from limbeck.objectives.networks.logits import Between, wide
from limbeck.objectives.networks.token_relations import relation, relation_kl


def attention_kl(student: Parts, teacher: Parts, *, heads: int = 1) -> Tensor:
    """KL(r_t(Q, K) ‖ r_s(Q, K)) + KL(r_t(V, V) ‖ r_s(V, V)) with r = softmax(A·Bᵀ/√d), d = D/heads, [B].

    Both are means over heads and rows. Widths D of student and teacher may differ.

    Args:
        student: Q, K and V, [B, N, D] each.
        teacher: the same of the teacher, whose D is its own; no gradient flows to it.
        heads: how D is cut; those of the attention, if the first is to be its weights.

    Raises:
        Incompatible: other numbers of tokens, heads that do not divide D.

    Source: MiniLM, Wang et al. 2020, arXiv 2002.10957.

    >>> x, y = torch.randn(1, 5, 8), torch.randn(1, 5, 4)
    >>> attention_kl((x, x, x), (x, x, x), heads=2), bool(attention_kl((x, x, x), (y, y, y), heads=2) > 0)
    (tensor([0.]), True)
    """
    (q, k, v), (known_q, known_k, known_v) = student, teacher
    looks = relation_kl(relation(q, k, heads=heads), relation(known_q, known_k, heads=heads))
    return looks + relation_kl(relation(v, v, heads=heads), relation(known_v, known_v, heads=heads))


@dataclass(frozen=True, kw_only=True)
class MiniLM(Between):
    """`attention_kl` of the student's attention and the teacher's, Σ over blocks.

    Args: those of `Between`.
        pairs: taps of the student and the teacher's beside them: queries, keys and values, in this order, of one block
            after another.
        heads: of the relations.

    Raises:
        BadSetting: pairs that are not three for each block.
        Incompatible: no teacher or data with x, no such taps, other numbers of tokens, queries, keys and values of
            several shapes, heads that do not divide.

    Source: Wang et al. 2020, arXiv 2002.10957, for the last block of either.

    >>> from limbeck import Dataset, distill
    >>> from limbeck.problems.networks import ViT
    >>> teacher, student = ViT(size=4, classes=3), ViT(size=4, classes=3, width=12, blocks=1)
    >>> pairs = {f"blocks.0.self_attn.{part}": f"blocks.2.self_attn.{part}" for part in ("queries", "keys", "values")}
    >>> run = distill(teacher, student, MiniLM(pairs=pairs, heads=4), Dataset(x=torch.randn(9, 1, 4, 4)), steps=1)
    >>> sorted(next(iter(run)).losses)
    ['minilm']
    """

    pairs: Pairs | Mapping[str, str] = ()
    heads: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.pairs, Mapping):
            object.__setattr__(self, "pairs", tuple(self.pairs.items()))
        if not self.pairs or len(self.pairs) % 3:
            need = "pairs of taps of queries, keys and values for each block"
            raise BadSetting(f"MiniLM needs {need}, got {len(self.pairs)} pairs.")
        in_range("heads", self.heads, 1)

    @property
    def _taps(self) -> dict[str, tuple[str, ...]]:
        return dict(zip((self.student, self.teacher), zip(*self.pairs, strict=True), strict=True))

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        for who, taps in self._taps.items():
            one_each(cast.tap(who, *taps, by=self), taps, by=self)
        self._loss({who: cast.dry(who).features for who in self._taps})  # refuses now what does not fit

        def loss(tick: Tick) -> Loss:
            return Loss(self._loss({who: tick.answer(who).features for who in self._taps}))

        return (Term(self.name, self.student, loss, of=self),)

    def _loss(self, features: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
        """The loss [B] of what was tapped of both."""
        ours, theirs = (self._blocks(features[who], taps) for who, taps in self._taps.items())
        with torch.autocast(ours[0][0].device.type, enabled=False):
            parts = [attention_kl(s, t, heads=self.heads) for s, t in zip(ours, theirs, strict=True)]
        return torch.stack(parts).sum(0)

    @staticmethod
    def _blocks(features: Mapping[str, Tensor], taps: tuple[str, ...]) -> list[Parts]:
        """Queries, keys and values of each block, in at least float32."""
        blocks = list[Parts]()
        for first in range(0, len(taps), 3):
            q, k, v = (wide(tokens(features[name])) for name in taps[first : first + 3])
            if not q.shape == k.shape == v.shape:
                got = ", ".join(str([*x.shape[1:]]) for x in (q, k, v))
                raise Incompatible("MiniLM", need="queries, keys and values of one shape", got=got)
            blocks.append((q, k, v))
        return blocks


__all__ = ["MiniLM", "attention_kl"]
