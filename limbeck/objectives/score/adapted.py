"""A real score that begins near the fake one: the teacher with the critic's adapters on, at a strength that falls."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.guidance import Guidance
from limbeck.engine.objective import Term
from limbeck.engine.roles import Cast
from limbeck.engine.schedule import Linear, Schedule, value_at
from limbeck.engine.tick import Noised, Tick
from limbeck.errors import BadSetting
from limbeck.objectives.score.critic import Critic
from limbeck.objectives.score.parts import Part
from limbeck.teachers.lora import LowRank


@contextmanager
def at_strength(module: nn.Module, strength: float) -> Generator[None]:
    """Inside, the module's low-rank adapters are multiplied by ``strength``; 0 is the network without them.

    >>> from limbeck import low_rank
    >>> net = low_rank(nn.Sequential(nn.Linear(1, 1, bias=False)).requires_grad_(False), 1)
    >>> for p in (net[0].base.weight, net[0].down, net[0].up): _ = p.data.fill_(1.0)
    >>> with at_strength(net, 0.5): net(torch.ones(1, 1)).item()
    1.5
    """
    layers = [(layer, layer.factor) for layer in module.modules() if isinstance(layer, LowRank)]
    try:
        for layer, factor in layers:
            layer.factor = strength * factor
        yield
    finally:
        for layer, factor in layers:
            layer.factor = factor


@dataclass(frozen=True, kw_only=True)
class Adapted(Part):
    """ε by the teacher's weights plus ``strength`` times the critic's adapters: the teacher at 0, the critic at 1.

    While the student's samples are still far from the teacher's, a teacher that was moved towards them gives scores
    that mean something there; as the strength falls, it goes back to what it knows.

    Args:
        critic: settings of ψ, with adapters.
        strength: a number or a schedule.
        guidance: in the place of the objective's.

    Raises:
        BadSetting: a critic without adapters.

    Source: the dynamic distribution guidance of DMDR, Jiang et al. 2025, arXiv 2511.13649; the released code takes 0.75
    on the teacher to 2 on the critic, and lets the first fall as half a cosine.

    >>> Adapted(critic=Critic())
    Traceback (most recent call last):
    limbeck.errors.BadSetting: critic must have adapters, such as Critic(rank=8), got rank None.
    """

    critic: Critic = field(default_factory=lambda: Critic(rank=8))
    strength: float | Schedule = Linear(first=0.375, last=0.0, until=0.5)
    guidance: Guidance | None = None

    def __post_init__(self) -> None:
        if self.critic.rank is None:
            raise BadSetting("critic must have adapters, such as Critic(rank=8), got rank None.")

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        return (self.critic.join(cast),)

    def eps(self, tick: Tick, seen: Noised, guidance: Guidance | None) -> Tensor:
        guidance, strength = self.guidance or guidance, value_at(self.strength, tick.progress)
        if strength == 0:
            return seen.eps_of(tick.denoise("teacher", seen, guidance))
        critic = tick.cast.need("critic", Denoiser, by=self)
        denoiser = guidance(critic) if guidance else critic
        with torch.no_grad(), tick.seeded(("denoise", "teacher", seen.key)), at_strength(critic, strength):
            return seen.eps_of(denoiser.denoise(seen.x_t.detach(), seen.t, seen.cond))
