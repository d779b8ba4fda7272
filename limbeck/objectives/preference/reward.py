"""Climbing a reward through the student's samples, and staying near where the student's weights began."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck.engine.objective import Loss, Objective, Term
from limbeck.engine.roles import Cast
from limbeck.engine.student import Grows, Student
from limbeck.engine.tick import Tick
from limbeck.errors import Incompatible, in_range
from limbeck.objectives.preference.rewards import Direction, Preference
from limbeck.objectives.score.distillation import along
from limbeck.tree import Tree


def ascent(x: Tensor, value: Tensor, *, normalise: bool = False) -> Tensor:
    """∇_x of the rewards r(x), shape of x; each example's over its norm if ``normalise``.

    Args:
        x: samples that r was computed from, with their graph, [B, …].
        value: r(x), [B].
        normalise: rewards of any scale then pull alike.

    >>> x = torch.ones(1, 2, requires_grad=True)
    >>> ascent(x, 3 * x[:, 0] + 4 * x[:, 1], normalise=True)
    tensor([[0.6000, 0.8000]])
    """
    (slope,) = torch.autograd.grad(value.sum(), x)
    norm = slope.flatten(1).norm(dim=1).clamp_min(1e-12).reshape(-1, *[1] * (x.dim() - 1))
    return slope / norm if normalise else slope


@dataclass(frozen=True, kw_only=True)
class Reward(Objective):
    """−r(x, c) + hold/2·‖θ − θ₀‖²: the student's samples climb a differentiable reward, held by its first weights θ₀.

    Several rewards are several of these, added. Beside a term whose gradient is that of β·KL(q‖p), the optimum without
    ``hold`` is the tilted density ∝ p·exp(r/β).

    Args:
        reward: r.
        normalise: climb ∇r/‖∇r‖ of each example instead, so that rewards of different scale balance by their weights.
        hold: weight of the distance to the weights that the student began with.

    Raises:
        Incompatible: a student that draws no samples; one whose parameters change shape, where they are held.

    Source: reward feedback learning, Xu et al. 2023, arXiv 2304.05977, eq. 3, on the samples themselves; held, several
    at once and normalised as in R0, Luo et al. 2025, arXiv 2503.13070.

    >>> from limbeck import Nearness, Particles, SGD, distill
    >>> x = Particles(torch.zeros(1, 1))
    >>> objective = Reward(reward=Nearness(to=(1.0,)), hold=3.0)
    >>> x = distill(None, x, objective, steps=200, batch=1, optim=SGD(lr=0.1)).finish()
    >>> round(x.x.item(), 4)  # where x − 1 + 3x = 0
    0.25
    """

    reward: Preference = Direction()
    normalise: bool = False
    hold: float = 0.0

    def __post_init__(self) -> None:
        in_range("hold", self.hold, 0)

    def check(self, cast: Cast) -> None:
        student = cast.need("student", Student, by=self)
        if self.hold and isinstance(student, Grows):
            got = f"a {type(student).__name__}"
            raise Incompatible("Reward", need="a student whose parameters keep their shapes", got=got, fit="OneStep")

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        params = cast.roles["student"].params
        start = cast.keep("student's start", lambda: Start(params)) if self.hold else None

        def loss(tick: Tick) -> Loss:
            draw = tick.draw()
            value = self._climb(draw.x, draw.cond)
            return Loss(value if start is None else value + self.hold / 2 * start.distance(params))

        return (Term("reward", "student", loss, of=self),)

    def _climb(self, x: Tensor, cond: Tree) -> Tensor:
        """−r, [B], or what has −∇r/‖∇r‖ as its gradient."""
        if not self.normalise:
            return -self.reward(x, cond)
        leaf = x.detach().requires_grad_()
        return along(x, -ascent(leaf, self.reward(leaf, cond), normalise=True))


class Start(nn.Module):
    """Frozen copies of parameters, in order."""

    def __init__(self, params: Mapping[str, nn.Parameter]):
        super().__init__()
        self.values = nn.ParameterList([nn.Parameter(p.detach().clone(), requires_grad=False) for p in params.values()])

    def distance(self, params: Mapping[str, Tensor]) -> Tensor:
        """‖θ − θ₀‖² over all of them, []."""
        pairs = zip(params.values(), self.values, strict=True)
        return torch.stack([((p - p0) ** 2).sum() for p, p0 in pairs]).sum()
