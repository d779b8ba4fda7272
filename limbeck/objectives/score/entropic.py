"""Entropic score distillation: the critic forgets the view in part, so that views of one object differ."""

from dataclasses import dataclass, field

from limbeck.diffusion.guidance import CFG
from limbeck.objectives.score.critic import Critic
from limbeck.objectives.score.distillation import ScoreDistillation
from limbeck.objectives.score.parts import Fake, Part


@dataclass(frozen=True, kw_only=True)
class ESD(ScoreDistillation):
    """Entropic score distillation, g = w(t)·(ε_T(x_t) − λ·ε_ψ(x_t; ∅) − (1 − λ)·ε_ψ(x_t; view)).

    The critic ψ learns views of one object with and without their condition, and is guided by the scale 1 − λ. λ = 0 is
    VSD, which for a single object seeks the likeliest of each view by itself; λ = 1 compares all views together with
    the teacher.

    Args: those of `ScoreDistillation`; λ is ``fake=Fake(critic=Critic(dropout=…), guidance=CFG(scale=1 − λ))``.

    Source: Wang et al. 2024, arXiv 2401.00909, eq. 12 and 13.

    >>> import torch
    >>> from limbeck import GaussianMixture, Particles, distill
    >>> teacher = GaussianMixture(means=torch.ones(1, 2), std=0.5)
    >>> sorted(next(iter(distill(teacher, Particles(torch.zeros(8, 2)), ESD(), steps=1, batch=8))).losses)
    ['critic', 'esd']
    """

    fake: Part = field(default_factory=lambda: Fake(critic=Critic(dropout=0.5), guidance=CFG(scale=0.5)))
