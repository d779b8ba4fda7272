"""A network's own past as its teacher: snapshots of it vote."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck.engine.objective import Loss, Objective, Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Tick
from limbeck.errors import above_zero, in_range
from limbeck.objectives.networks.logits import logits, soft_kl


@dataclass(frozen=True, kw_only=True)
class PastVotes(Objective):
    """T²·KL(p̄ ‖ p_s), p̄ the mean of what the last K snapshots of the student say; 0 before there is one.

    A snapshot is taken after every so many ticks, and takes the place of the oldest.

    Args:
        student: the name of who learns, and whose past it is.
        voters: K.
        every: ticks between snapshots.
        temperature: T.

    Raises:
        BadSetting: numbers below 1, or a temperature that is not above 0.
        Incompatible: no such student, no inputs x.

    Source: Zhu et al. 2023, arXiv 2302.05629.

    >>> from limbeck import Dataset, distill
    >>> run = distill(None, nn.Linear(4, 3), PastVotes(), Dataset(x=torch.randn(9, 4)), steps=1, batch=8)
    >>> next(iter(run)).losses
    {'pastvotes': 0.0}
    """

    student: str = "student"
    voters: int = 3
    every: int = 50
    temperature: float = 1.0

    def __post_init__(self) -> None:
        in_range("voters", self.voters, 1)
        in_range("every", self.every, 1)
        above_zero("temperature", self.temperature)

    def check(self, cast: Cast) -> None:
        cast.need_network(self.student, by=self)
        cast.need_fields("x", by=self)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        student = cast.need_network(self.student, by=self)
        name = "pastvotes" if self.student == "student" else f"pastvotes {self.student}"

        def copies() -> nn.ModuleList:
            made = nn.ModuleList(copy.deepcopy(student) for _ in range(self.voters))
            return made.requires_grad_(False).eval()

        past = cast.keep(f"{name} {self}", copies)

        def loss(tick: Tick) -> Loss:
            taken, rest = divmod(tick.i, self.every)
            if taken and not rest:  # the same for each micro-batch, for all see the tick's starting parameters
                past[(taken - 1) % self.voters].load_state_dict(student.state_dict())
            s = logits(tick, self.student)
            if not taken:
                return Loss(0 * s.sum(1))
            return Loss(soft_kl(s, self._voted(past, taken, tick), temperature=self.temperature))

        return (Term(name, self.student, loss, of=self),)

    @torch.no_grad()
    def _voted(self, past: nn.ModuleList, taken: int, tick: Tick) -> Tensor:
        """Logits of the mean of probabilities at T, [B, C]."""
        said = [voter(tick.batch["x"]) / self.temperature for voter in [*past][: min(taken, self.voters)]]
        return self.temperature * torch.stack([z.log_softmax(-1) for z in said]).logsumexp(0)


__all__ = ["PastVotes"]
