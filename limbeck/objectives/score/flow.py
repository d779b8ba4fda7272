"""Consistent flow distillation: a student descends along the teacher's ODE, seen as a flow of clean samples."""

from dataclasses import dataclass, field

import torch

from limbeck.diffusion.process import Process
from limbeck.diffusion.times import Annealed, Times, Uniform
from limbeck.engine.schedule import Schedule
from limbeck.errors import in_range
from limbeck.objectives.score.distillation import ScoreDistillation
from limbeck.objectives.score.noise import Attached, Noise
from limbeck.objectives.score.parts import Weight

FALLING = Annealed(first=Uniform(lo=0.98, hi=0.98), last=Uniform(lo=0.02, hi=0.02))
"""One level for all samples, which falls along the process's clock as the run goes on."""


@dataclass(frozen=True, kw_only=True)
class CFD(ScoreDistillation):
    """Consistent flow distillation, g = (σ/α)·(ε_T(α·x + σ·ẽ, t) − ẽ) while t falls, with noise ẽ stuck to the student.

    With r = σ/α the teacher's ODE is dx = dr·(ε_T(α·x + σ·ẽ, t) − ẽ) for the clean x = x_t/α − r·ẽ, whose noise stays.
    So a gradient step of rate (r − r')/r is one step of DDIM from r to r'; see `EulerRate`. Views of one surface share
    what of its noise they see.

    Args: those of `ScoreDistillation`; ``noise=Attached(refresh=γ)`` follows an SDE instead. The authors take
        ``guidance=CFG(scale=75)`` in 3-D.

    Source: Yan et al. 2025, arXiv 2501.05445, eq. 8 to 10.

    >>> import torch
    >>> from limbeck import GaussianMixture, Particles, distill
    >>> teacher = GaussianMixture(means=torch.ones(1, 2), std=0.5)
    >>> sorted(next(iter(distill(teacher, Particles(torch.zeros(8, 2)), CFD(), steps=1, batch=8))).losses)
    ['cfd']
    """

    noise: Noise = field(default_factory=Attached)
    weight: Weight = field(default_factory=lambda: Weight(sigma=1.0, alpha=-1.0))
    times: Times = FALLING


@dataclass(frozen=True, kw_only=True)
class EulerRate(Schedule):
    """(r − r')/r for r = σ/α at this tick and r' at the next, 0 after the last: a rate with which `CFD` is DDIM.

    It is the rate of one sample; where a loss is a mean over n of them, SGD needs ``lr=n``.

    Args:
        times: the levels of the run, all samples at the same.
        process: the noise process.
        steps: of the run.

    Raises:
        BadSetting: fewer than one step.

    >>> from limbeck.diffusion import EDM
    >>> rate = EulerRate(times=Annealed(first=Uniform(lo=1, hi=1), last=Uniform(lo=0, hi=0)), process=EDM(), steps=2)
    >>> round(rate(0.0), 4), rate(0.5)  # 1 − 2.5152/80
    (0.9686, 1.0)
    """

    times: Times
    process: Process
    steps: int

    def __post_init__(self) -> None:
        in_range("steps", self.steps, 1)

    def __call__(self, progress: float) -> float:
        here, after = self._ratio(progress), self._ratio(progress + 1 / self.steps)
        return 1 - after / here

    def _ratio(self, progress: float) -> float:
        if progress > 1 - 0.5 / self.steps:
            return 0.0
        half = torch.full((1,), 0.5, dtype=torch.float64)
        return self.process.ratio(self.times.at(half, self.process, progress)).item()
