"""Transfer between any two trained networks: each example is taught by whoever knows it better, or kept as it was."""

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.engine.roles import Cast
from limbeck.engine.tick import Tick
from limbeck.errors import above_zero
from limbeck.objectives.networks.logits import OnLogits, both_logits, hard_labels, soft_kl


def knows_better(teacher: Tensor, before: Tensor, y: Tensor | None = None) -> Tensor:
    """Whether the teacher gives the label more probability than the student before transfer did, boolean [B].

    Without labels, whether the most that it gives to any class is more. Of equals neither is better.

    Args:
        teacher: logits, [B, C].
        before: logits of the student as it was, [B, C].
        y: labels, [B].

    Source: Roth et al. 2023, arXiv 2310.17653.

    >>> knows_better(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    tensor([False])
    """
    p, q = (z.detach().log_softmax(1) for z in (teacher, before))
    if y is None:
        return p.amax(1) > q.amax(1)
    return (p.gather(1, y[:, None]) > q.gather(1, y[:, None]))[:, 0]


def partitioned_kl(
    student: Tensor, teacher: Tensor, before: Tensor, y: Tensor | None = None, *, temperature: float = 1.0
) -> Tensor:
    """m·KL(p_t ‖ p_s) + (1 − m)·KL(p_before ‖ p_s), m = `knows_better`, both `soft_kl`, [B].

    Args:
        student: logits, [B, C].
        teacher: logits, [B, C]; no gradient flows to them.
        before: logits of the student as it was, [B, C].
        y: labels, [B], or None to go by confidence.
        temperature: T.

    Source: KL+DP, Roth et al. 2023, arXiv 2310.17653.

    >>> partitioned_kl(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 2))
    tensor([0.])
    """
    chosen = torch.where(knows_better(teacher, before, y)[:, None], teacher, before)
    return soft_kl(student, chosen, temperature=temperature)


@dataclass(frozen=True, kw_only=True)
class PartitionedKD(OnLogits):
    """`partitioned_kl`: where the teacher knows better the student follows it, elsewhere it stays as it was.

    Args:
        before: the name of the student as it was, ``distill({"teacher": ..., "before": ...}, ...)``.
        labels: whether labels say who knows better; otherwise confidence does.
        temperature: T.

    Raises:
        BadSetting: a temperature that is not above 0.
        Incompatible: no teacher, none named ``before``, no inputs x, or no labels y where they are wanted.

    Source: Roth et al. 2023, arXiv 2310.17653.

    >>> from torch import nn
    >>> from limbeck import Dataset, distill
    >>> both, data = {"teacher": nn.Linear(4, 3), "before": nn.Linear(4, 3)}, Dataset(x=torch.randn(9, 4))
    >>> run = distill(both, nn.Linear(4, 3), PartitionedKD(labels=False), data, steps=1, batch=8)
    >>> sorted(next(iter(run)).losses)
    ['partitionedkd']
    """

    before: str = "before"
    labels: bool = True
    temperature: float = 1.0

    def __post_init__(self) -> None:
        above_zero("temperature", self.temperature)

    @property
    def fields(self) -> tuple[str, ...]:
        return ("x", "y") if self.labels else ("x",)

    def check(self, cast: Cast) -> None:
        super().check(cast)
        cast.need_network(self.before, by=self)

    def value(self, student: Tensor, teacher: Tensor, tick: Tick) -> Tensor:
        y = hard_labels(tick.batch, by=self) if self.labels else None
        _, before = both_logits(tick, self, self.student, self.before)
        return partitioned_kl(student, teacher, before, y, temperature=self.temperature)


__all__ = ["PartitionedKD", "knows_better", "partitioned_kl"]
