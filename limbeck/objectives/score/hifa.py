"""HiFA: score distillation in latents and in pixels, with noise levels that fall along the run."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from limbeck.diffusion.process import Process
from limbeck.diffusion.times import Times
from limbeck.engine.objective import Loss
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Noised, Tick
from limbeck.errors import in_range
from limbeck.objectives.score.distillation import ScoreDistillation, along


@dataclass(frozen=True, kw_only=True)
class RootAnnealed(Times):
    """One level for all, falling as a root: last + (first − last)·(1 − √progress) of the process's clock.

    Args:
        first: the fraction of the clock at the start.
        last: at the end.

    Raises:
        BadSetting: a fraction outside [0, 1].

    Source: HiFA, arXiv 2305.18766.

    >>> from limbeck.diffusion import VP
    >>> [round(RootAnnealed().at(torch.zeros(1), VP(), p).item(), 2) for p in (0.0, 0.25, 1.0)]
    [0.98, 0.64, 0.3]
    """

    first: float = 0.98
    last: float = 0.3

    def __post_init__(self) -> None:
        in_range("first", self.first, 0, 1)
        in_range("last", self.last, 0, 1)

    def at(self, u: Tensor, process: Process, progress: float = 0.0) -> Tensor:
        level = self.last + (self.first - self.last) * (1 - progress**0.5)
        return process.at_fraction(torch.full_like(u, level))


@dataclass(frozen=True, kw_only=True)
class HiFA(ScoreDistillation):
    """SDS and the same in pixels, λ·w(t)·(α/σ)·½‖D(x) − D(x0_T)‖² through a decoder D: latents that decode well.

    In latents w·(α/σ)·½‖x − x0_T‖² has the gradient of SDS; the second loss is the same behind D.

    Args:
        pixels: λ.
        decoder: the name of D among the teachers; None for the identity, with which all is (1 + λ)·SDS.

    The others are those of `ScoreDistillation`; the authors take ``guidance=CFG(scale=100)``.

    Raises:
        BadSetting: λ below 0.
        Incompatible: no teacher of that name, or one that maps nothing.

    Source: Zhu et al. 2023, arXiv 2305.18766.

    >>> from limbeck import GaussianMixture, Particles, distill
    >>> teacher = {"teacher": GaussianMixture(means=torch.ones(1, 2), std=0.5), "decoder": nn.Linear(2, 5)}
    >>> hifa = HiFA(decoder="decoder")
    >>> sorted(next(iter(distill(teacher, Particles(torch.zeros(8, 2)), hifa, steps=1, batch=8))).losses)
    ['hifa']
    """

    times: Times = field(default_factory=RootAnnealed)
    pixels: float = 0.1
    decoder: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("pixels", self.pixels, 0)

    def check(self, cast: Cast) -> None:
        super().check(cast)
        if self.decoder:
            cast.need_network(self.decoder, by=self)

    def loss(self, tick: Tick) -> Loss:
        seen = self.noise.see(tick, self.times)
        real, fake = (part.eps(tick, seen, self.guidance) for part in (self.real, self.fake))
        latent = along(seen.x, self.shaped(seen, real, fake, tick))
        return Loss(latent + self.pixels * self.decoded(tick, seen, real))

    def decoded(self, tick: Tick, seen: Noised, real: Tensor) -> Tensor:
        """w(t)·(α/σ)·½‖D(x) − D(x0_T)‖², [B]."""
        decoder = tick.cast.need_network(self.decoder, by=self) if self.decoder else nn.Identity()
        with torch.no_grad():
            target = decoder(seen.process.convert(real, seen.x_t, seen.t, "eps", "x0"))
        away = ((decoder(seen.x) - target) ** 2).flatten(1).sum(1) / 2
        return (self.weight.at(seen.t, seen.process) / seen.process.ratio(seen.t)).to(away) * away
