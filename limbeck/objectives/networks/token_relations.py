"""Relations between tokens: which place is like which, whatever the widths and heads of student and teacher."""

from dataclasses import dataclass, field

import torch
from torch import Size, Tensor, nn

from limbeck.engine.tick import Tick
from limbeck.errors import Incompatible, in_range
from limbeck.objectives.networks.across import tokens
from limbeck.objectives.networks.features import OnFeatures
from limbeck.objectives.networks.projectors import Projector


def relation(a: Tensor, b: Tensor, *, heads: int = 1) -> Tensor:
    """ln softmax(A·Bᵀ/√d) over the last axis in every head, d = D/heads, [B, heads, N, N].

    Args:
        a: rows, [B, N, D].
        b: columns, [B, N, D].
        heads: how D is cut, whatever attention it came from.

    Raises:
        Incompatible: heads that do not divide D.

    >>> relation(torch.zeros(1, 2, 4), torch.zeros(1, 2, 4), heads=2).exp()[0, 0]
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """
    if a.shape[2] % heads:
        need, got = f"heads that divide {a.shape[2]} channels", str(heads)
        raise Incompatible("a relation of tokens", need=need, got=got)
    a, b = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (a, b))
    return (a @ b.mT / a.shape[3] ** 0.5).log_softmax(-1)


def relation_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(r_t ‖ r_s) of relations, mean over heads and rows, [B].

    Args:
        student: ln r_s, [B, heads, N, N].
        teacher: ln r_t, of the same shape; no gradient flows to it.

    Raises:
        Incompatible: other numbers of tokens.

    Source: MiniLMv2, Wang et al. 2020, arXiv 2012.15828.

    >>> relation_kl(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
    tensor([0.])
    """
    if student.shape != teacher.shape:
        need, got = f"a student with {teacher.shape[-1]} tokens", str(student.shape[-1])
        raise Incompatible("a relation of tokens", need=need, got=got)
    t = teacher.detach()
    return (t.exp() * (t - student)).sum(-1).mean((1, 2))


@dataclass(frozen=True)
class Tokens(Projector):
    """Features as tokens of whatever width, as many as the teacher has.

    Raises:
        Incompatible: another number of tokens.

    >>> Tokens().build(torch.Size([8, 16, 4, 4]), torch.Size([8, 16, 5]))(torch.ones(3, 16, 4, 4)).shape
    torch.Size([3, 16, 16])
    """

    learns = False

    def build(self, student: Size, teacher: Size) -> nn.Module:
        few, many = (tokens(torch.empty(shape, device="meta")).shape[1] for shape in (student, teacher))
        if few != many:
            raise Incompatible("a relation of tokens", need=f"a student with {many} tokens", got=str(few))
        return AsTokens()


class AsTokens(nn.Module):
    """Features of any shape as tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D]."""
        return tokens(x)


@dataclass(frozen=True, kw_only=True)
class Relations(OnFeatures):
    """`relation_kl` of how the tokens of tapped features relate: widths and heads may differ without a projector.

    Args: those of `OnFeatures`.
        pairs: taps of tokens, such as queries of both, keys of both and values of both.
        heads: of the relations, of whatever heads attention has.

    Raises:
        BadSetting: no pairs.
        Incompatible: no teacher or data with x, no such taps, other numbers of tokens, heads that do not divide.

    Source: MiniLMv2, Wang et al. 2020, arXiv 2012.15828, for queries, keys and values of one block.

    >>> from limbeck import Dataset, distill
    >>> from limbeck.problems.networks import ViT
    >>> teacher, student = ViT(size=4, classes=3), ViT(size=4, classes=3, width=12, blocks=1)
    >>> pairs = {f"blocks.0.self_attn.{part}": f"blocks.2.self_attn.{part}" for part in ("queries", "keys", "values")}
    >>> run = distill(teacher, student, Relations(pairs=pairs), Dataset(x=torch.randn(9, 1, 4, 4)), steps=1, batch=8)
    >>> sorted(next(iter(run)).losses)
    ['relations']
    """

    projector: Projector = field(default_factory=Tokens)
    heads: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("heads", self.heads, 1)

    def value(self, student: Tensor, teacher: Tensor, tick: Tick) -> Tensor:
        s, t = (relation(x, x, heads=self.heads) for x in (student, tokens(teacher)))
        return relation_kl(s, t)


__all__ = ["Relations", "Tokens", "relation", "relation_kl"]
