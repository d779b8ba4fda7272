"""Online distillation: two students learn side by side, each from labels and from the other."""

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from limbeck.engine.objective import Loss, Objective, Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Tick
from limbeck.errors import BadSetting, Incompatible, above_zero, in_range
from limbeck.objectives.networks.logits import both_logits, from_zero, soft_kl, weighed, wide


def need_peer(cast: Cast, peer: str, by: object) -> None:
    """Raises `Incompatible` unless there is a second student of this name, and both map inputs to outputs."""
    if peer not in cast.students:
        fit = f'student={{"student": ..., "{peer}": ...}}'
        raise Incompatible(type(by).__name__, need=f"a second student {peer!r}", got="none", fit=fit)
    for who in ("student", peer):
        cast.need_network(who, by=by)


@dataclass(frozen=True, kw_only=True)
class Online(Objective):
    """Cross-entropy for both of two students, and what each loses by the other, which does not move by it.

    Args:
        peer: the name of the other one, ``distill(None, {"student": ..., "peer": ...}, ...)``.
        weight: of what they lose by each other.
    """

    peer: str = "peer"
    weight: float = 1.0

    def __post_init__(self) -> None:
        in_range("weight", self.weight, 0)
        if self.peer == "student":
            raise BadSetting("the peer needs a name of its own, got 'student'.")

    @abstractmethod
    def towards(self, own: Tensor, other: Tensor, who: str) -> Tensor:
        """What the student ``who`` loses by the other, [B], by logits of both, [B, C]; the other's are fixed."""

    def check(self, cast: Cast) -> None:
        need_peer(cast, self.peer, by=self)
        cast.need_fields("x", "y", by=self)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        def term(who: str, other: str) -> Term:
            def loss(tick: Tick) -> Loss:
                own, theirs = both_logits(tick, self, who, other)
                hard = F.cross_entropy(own, tick.batch["y"], reduction="none")
                return Loss(hard + self.weight * self.towards(own, theirs, who))

            return Term(f"{type(self).__name__.lower()} {who}", who, loss, of=self)

        return term("student", self.peer), term(self.peer, "student")


@dataclass(frozen=True, kw_only=True)
class Mutual(Online):
    """Deep mutual learning: CE(s, y) + λ·KL(p_peer ‖ p_s), and the same for the peer.

    Args: those of `Online`.

    Raises:
        Incompatible: no second student, no inputs x or labels y.

    Source: Zhang et al. 2017, arXiv 1706.00384; both step at once here, in turn there.

    >>> import torch
    >>> from torch import nn
    >>> from limbeck import Dataset, distill
    >>> data = Dataset(x=torch.randn(9, 4), y=torch.arange(9) % 3)
    >>> run = distill(None, {"student": nn.Linear(4, 3), "peer": nn.Linear(4, 3)}, Mutual(), data, steps=1, batch=8)
    >>> sorted(next(iter(run)).losses)
    ['mutual peer', 'mutual student']
    """

    def towards(self, own: Tensor, other: Tensor, who: str) -> Tensor:
        return soft_kl(own, other)


def entropy(logits: Tensor) -> Tensor:
    """−Σ_c p_c·ln p_c of p = softmax(z), in nats, [B].

    Args:
        logits: z, [B, C].

    >>> import torch
    >>> entropy(torch.zeros(1, 2))
    tensor([0.6931])
    """
    z = logits.log_softmax(-1)
    return -(z.exp() * z).sum(-1)


def reverse_kl(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """T²·KL(softmax(s/T) ‖ softmax(t/T)), [B], with gradients to the student alone.

    Args:
        student: logits s, [B, C].
        teacher: logits t, [B, C]; no gradient flows to them.
        temperature: T.

    >>> import torch
    >>> reverse_kl(torch.zeros(1, 2), torch.zeros(1, 2))
    tensor([0.])
    """
    s, t = ((wide(z) / temperature).log_softmax(-1) for z in (student, teacher.detach()))
    return temperature**2 * from_zero(weighed(s, t).sum(-1))


def balanced_kl(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """2·(1 − a)·KL(p_t ‖ p_s) + 2·a·KL(p_s ‖ p_t), a = σ(H(p_t) − H(p_s)) for each example, [B].

    Where the student is surer than the teacher, H(p_s) < H(p_t), the reverse divergence counts more, which has
    −H(p_s) in it; with equal entropies both count alike.

    Args:
        student: logits, [B, C].
        teacher: logits, [B, C]; no gradient flows to them.
        temperature: T of both divergences; entropies are at T = 1.

    Source: BD-KD, Amara et al. 2022, arXiv 2212.12965, for the idea; the form of the weights is ours.

    >>> import torch
    >>> balanced_kl(torch.zeros(1, 2), torch.zeros(1, 2))
    tensor([0.])
    """
    gap = (entropy(teacher) - entropy(student)).detach()
    forward, reverse = (f(student, teacher, temperature=temperature) for f in (soft_kl, reverse_kl))
    return 2 * (1 - gap.sigmoid()) * forward + 2 * gap.sigmoid() * reverse


@dataclass(frozen=True, kw_only=True)
class BalancedDivergence(Online):
    """BD-KD: the student follows the `balanced_kl` to its peer, the larger peer the reverse divergence to the student.

    Args: those of `Online`.
        temperature: T of the divergences.

    Raises:
        BadSetting: a temperature that is not above 0.
        Incompatible: no second student, no inputs x or labels y.

    Source: Amara et al. 2022, arXiv 2212.12965.

    >>> import torch
    >>> from torch import nn
    >>> from limbeck import Dataset, distill
    >>> data = Dataset(x=torch.randn(9, 4), y=torch.arange(9) % 3)
    >>> nets = {"student": nn.Linear(4, 3), "peer": nn.Linear(4, 3)}
    >>> sorted(next(iter(distill(None, nets, BalancedDivergence(), data, steps=1, batch=8))).losses)
    ['balanceddivergence peer', 'balanceddivergence student']
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero("temperature", self.temperature)

    def towards(self, own: Tensor, other: Tensor, who: str) -> Tensor:
        kl = reverse_kl if who == self.peer else balanced_kl
        return kl(own, other, temperature=self.temperature)


__all__ = ["BalancedDivergence", "Mutual", "Online", "balanced_kl", "entropy", "reverse_kl"]
