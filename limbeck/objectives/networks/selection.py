"""Whom to learn from, example by example: a policy that chooses among teachers, and is rewarded by the student."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.engine.objective import Loss, Objective, Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Tick
from limbeck.errors import BadSetting, Incompatible, above_zero, in_range
from limbeck.objectives.networks.logits import hard_labels, logits, soft_kl


def chosen_mean(p: Tensor, chosen: Tensor) -> Tensor:
    """The mean of the chosen teachers' probabilities, of all where none is chosen, [B, C].

    Args:
        p: probabilities of K teachers, [B, K, C].
        chosen: whom each example learns from, boolean [B, K].

    >>> chosen_mean(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.tensor([[False, True]]))
    tensor([[0., 1.]])
    """
    share = torch.where(chosen.any(1, keepdim=True), chosen, True).to(p)
    return (share[..., None] * p).sum(1) / share.sum(1, keepdim=True)


def reinforce(score: Tensor, chosen: Tensor, advantage: Tensor) -> Tensor:
    """−A·Σ_k ln π(a_k), π(1) = σ(score), [B]: its gradient is in the mean that of −E[A] if A does not move, [B].

    Args:
        score: of each teacher, [B, K].
        chosen: actions a, boolean [B, K], drawn from π.
        advantage: A, [B]; no gradient flows to it.

    Source: Williams 1992, "Simple statistical gradient-following algorithms".

    >>> reinforce(torch.zeros(1, 1), torch.tensor([[True]]), torch.ones(1))
    tensor([0.6931])
    """
    return advantage.detach() * F.binary_cross_entropy_with_logits(score, chosen.to(score), reduction="none").sum(1)


def loss_after(student: Tensor, target: Tensor, y: Tensor, *, step: float = 1.0, temperature: float = 1.0) -> Tensor:
    """CE(s', y) of s' = s − λ·(softmax(s/T) − p̄): what the student loses after a step towards a target, [B].

    The step is along the gradient of −Σ p̄·ln softmax(s/T), up to a factor, as if logits were free to move.

    Args:
        student: logits s, [B, C].
        target: p̄, [B, C].
        y: labels, [B].
        step: λ.
        temperature: T.

    >>> loss_after(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.tensor([0]), step=2.0)
    tensor([0.1269])
    """
    moved = student - step * ((student / temperature).softmax(1) - target)
    return F.cross_entropy(moved, y, reduction="none")


@dataclass(frozen=True, kw_only=True)
class ReinforcedSelection(Objective):
    """(1 − α)·CE(s, y) + α·T²·KL(p̄ ‖ p_s) with p̄ the `chosen_mean` at T; a policy chooses, and learns by `reinforce`.

    A teacher is chosen with probability σ(A·state + b) by a state of the student's log-probabilities, the teacher's
    probabilities and what it loses by the label; A and b are the same for all teachers. The reward is −`loss_after`:
    what the student would gain by the label from a step towards the chosen ones; the advantage is over all at once.

    Args:
        student: the name of who learns.
        teachers: names of those to choose from.
        temperature: T.
        alpha: α.
        warmup: share of the run in which the student hears all of them, while the policy learns.
        step: λ of the reward.

    Raises:
        BadSetting: no teachers, or numbers out of range.
        Incompatible: no such teachers, other classes, no inputs x or labels y.

    Source: Yuan et al. 2020, arXiv 2012.06048, where the two learn in turn and the student has learned from a batch
    when that is rewarded; the step ahead, which rewards each example, is ours.

    >>> from limbeck import Dataset, distill
    >>> teachers = {"teacher": nn.Linear(4, 3), "second": nn.Linear(4, 3)}
    >>> data = Dataset(x=torch.randn(9, 4), y=torch.arange(9) % 3)
    >>> objective = ReinforcedSelection(teachers=("teacher", "second"))
    >>> sorted(next(iter(distill(teachers, nn.Linear(4, 3), objective, data, steps=1, batch=8))).losses)
    ['reinforcedselection', 'reinforcedselection policy']
    """

    student: str = "student"
    teachers: tuple[str, ...] = ("teacher",)
    temperature: float = 4.0
    alpha: float = 0.9
    warmup: float = 0.1
    step: float = 1.0

    def __post_init__(self) -> None:
        above_zero("temperature", self.temperature)
        in_range("alpha", self.alpha, 0, 1)
        in_range("warmup", self.warmup, 0, 1)
        above_zero("step", self.step)
        if not self.teachers:
            raise BadSetting("ReinforcedSelection needs names of teachers, got none.")

    @property
    def name(self) -> str:
        """Of the student's loss."""
        return "reinforcedselection" if self.student == "student" else f"reinforcedselection {self.student}"

    def check(self, cast: Cast) -> None:
        for who in (self.student, *self.teachers):
            cast.need_network(who, by=self)
        cast.need_fields("x", "y", by=self)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        role = f"{self.name} policy"
        policy = cast.role(role, lambda: self._policy(cast), spec=self).module

        def student(tick: Tick) -> Loss:
            s, known = self._asked(tick)
            chosen = self._chosen(tick, policy, s, known) | (tick.progress < self.warmup)
            hard = F.cross_entropy(s, hard_labels(tick.batch, by=self), reduction="none")
            target = self._target(known, chosen).clamp_min(1e-30).log()
            soft = soft_kl(s, self.temperature * target, temperature=self.temperature)
            return Loss((1 - self.alpha) * hard + self.alpha * soft)

        def chooser(tick: Tick) -> Loss:
            s, known = self._asked(tick)
            chosen = self._chosen(tick, policy, s, known)
            targets = (self._target(known, who) for who in (chosen, torch.ones_like(chosen)))
            y, how = hard_labels(tick.batch, by=self), {"step": self.step, "temperature": self.temperature}
            ours, everyone = (loss_after(s, target, y, **how) for target in targets)
            return Loss(reinforce(policy(self._state(tick, s, known))[..., 0], chosen, everyone - ours))

        return Term(self.name, self.student, student, of=self), Term(role, role, chooser, of=self)

    def _asked(self, tick: Tick) -> tuple[Tensor, Tensor]:
        """Logits of the student, [B, C], and of all teachers, [B, K, C]."""
        s, each = logits(tick, self.student), [logits(tick, who) for who in self.teachers]
        for who, t in zip(self.teachers, each, strict=True):
            if t.shape != s.shape:
                raise Incompatible("ReinforcedSelection", need=f"{s.shape[1]} classes of {who!r}", got=str(t.shape[1]))
        return s, torch.stack(each, 1)

    def _state(self, tick: Tick, s: Tensor, known: Tensor) -> Tensor:
        """What the policy sees of each teacher, [B, K, 2C + 1]; nothing in it moves by the policy."""
        y = hard_labels(tick.batch, by=self)[:, None, None].expand(-1, known.shape[1], 1)
        told = known.log_softmax(2)
        mine = s.detach().log_softmax(1)[:, None].expand_as(told)
        return torch.cat([mine, told.exp(), -told.gather(2, y)], 2)

    def _chosen(self, tick: Tick, policy: nn.Module, s: Tensor, known: Tensor) -> Tensor:
        """Actions of this tick, boolean [B, K], the same for both losses."""
        with torch.no_grad():
            likely = policy(self._state(tick, s, known))[..., 0].sigmoid()
        return tick.rng((self, "choice")).uniform(*likely.shape).to(likely) < likely

    def _target(self, known: Tensor, chosen: Tensor) -> Tensor:
        """p̄ at T, [B, C]."""
        return chosen_mean((known / self.temperature).softmax(2), chosen)

    def _policy(self, cast: Cast) -> nn.Module:
        out = cast.dry(self.student).out
        assert out is not None
        return nn.Linear(2 * out.shape[1] + 1, 1).to(next(cast.module(self.student).parameters()))


__all__ = ["ReinforcedSelection", "chosen_mean", "loss_after", "reinforce"]
