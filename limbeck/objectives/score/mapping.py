"""Variational distribution mapping: a light map after the frozen teacher stands in for a critic."""

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.guidance import Guidance
from limbeck.diffusion.process import Process, like
from limbeck.diffusion.times import LogNormal, Times
from limbeck.engine.objective import Loss, Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Noised, Tick
from limbeck.errors import in_range
from limbeck.objectives.score.critic import denoising
from limbeck.objectives.score.distillation import ScoreDistillation
from limbeck.objectives.score.parts import Part


class LightMap(nn.Module):
    """M = x̂0 + σs/n·F(x̂0/s, x_t/n, ln σ/α), n² = σ² + s²α²: a small residual network that starts as the identity.

    F has three layers, of convolutions on images [C, H, W] and of matrices on vectors.

    Args:
        shape: of one sample.
        width: channels of its layers.
        size: s, the data's standard deviation.

    >>> from limbeck.diffusion import VP
    >>> light, x0, x_t = LightMap((1, 8, 8)), torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
    >>> bool((light(x0, x_t, torch.full((2,), 0.5), VP()) == x0).all())
    True
    """

    def __init__(self, shape: tuple[int, ...], width: int = 32, size: float = 0.5):
        super().__init__()
        layer = partial(nn.Conv2d, kernel_size=3, padding=1) if len(shape) == 3 else nn.Linear
        self.inp, self.mid, self.out = layer(2 * shape[0], width), layer(width, width), layer(width, shape[0])
        self.level, self.size = nn.Linear(16, 2 * width), size
        self.register_buffer("freqs", 2.0 ** torch.linspace(-2, 4, 8), persistent=False)
        self.freqs: Tensor
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)

    def forward(self, x0: Tensor, x_t: Tensor, t: Tensor, process: Process) -> Tensor:
        """A sample for each x̂0 [B, …], predicted at x_t [B, …] and noise levels t [B]."""
        alpha, sigma = process.alpha(t), process.sigma(t)
        n = (sigma**2 + (self.size * alpha) ** 2).sqrt()
        angles = (sigma / alpha).clamp_max(1e4).log().to(x0)[:, None] / 4 * self.freqs.to(x0)
        shift, scale = self.level(torch.cat([angles.cos(), angles.sin()], 1)).chunk(2, 1)
        shift, scale = (v.reshape(*v.shape, *[1] * (x0.dim() - 2)) for v in (shift, scale))
        h = F.silu(self.inp(torch.cat([x0 / self.size, like(1 / n, x_t) * x_t], 1)) + shift)
        return x0 + like(sigma * self.size / n, x0) * self.out(F.silu(self.mid(h) * (1 + scale)))


@dataclass(frozen=True, kw_only=True)
class Mapped(Part):
    """ε of the sample that a light map M makes of the teacher's prediction, ε_M = (x_t − α·M)/σ.

    M, a `LightMap`, learns to give the student's own sample back, as if that were a degradation of x̂0, what the teacher
    makes of it, and so becomes E[x | x_t], a critic. The teacher's prediction is taken as it is: no gradient passes
    through the teacher, nor is there a second network of its size.

    Args:
        shape: of one sample.
        width: channels of M.
        times: noise levels that M learns at; where they are the objective's, the teacher's pass serves both.
        guidance: on the teacher before M; where it is the objective's, the teacher's pass serves both.
        clean: how much of ε_M stands in for the noise that was added at the clean end of the clock, 0 to 1.
        noisy: the same at the noisy end; in between it is linear on the clock.

    Raises:
        BadSetting: a share outside [0, 1], or no channels.

    Source: DreamMapping, Cai et al. 2024, arXiv 2409.05099: M maps x̂0 to the rendered image, and a coefficient that
    depends on the noise level weighs what it gives. That M sees x_t too, and how the coefficient moves, is ours.

    >>> Mapped(shape=(2,)).clean
    1.0
    """

    shape: tuple[int, ...]
    width: int = 32
    times: Times = field(default_factory=LogNormal)
    guidance: Guidance | None = None
    clean: float = 1.0
    noisy: float = 1.0

    def __post_init__(self) -> None:
        in_range("width", self.width, 1)
        in_range("clean", self.clean, 0, 1)
        in_range("noisy", self.noisy, 0, 1)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        cast.role("mapping", lambda: self.network(cast), spec=self)
        size = self.size(cast)

        def loss(tick: Tick) -> Loss:
            seen = tick.noised(self.times)
            return Loss(denoising(self.mapped(tick, seen), seen.x, seen.t, seen.process, size))

        return (Term("mapping", "mapping", loss, key=("mapping", self), of=self),)

    def size(self, cast: Cast) -> float:
        """The data's standard deviation, as the teacher has it."""
        return cast.need("teacher", Denoiser, by=self).sigma_data

    def network(self, cast: Cast) -> LightMap:
        """M before training, in the student's precision."""
        return LightMap(self.shape, self.width, self.size(cast)).to(next(cast.student.parameters()))

    def mapped(self, tick: Tick, seen: Noised) -> Tensor:
        """M at noised samples, with a gradient for M, shape of x_t."""
        x0 = tick.denoise("teacher", seen, self.guidance)
        return tick.cast.module("mapping")(x0, seen.x_t.detach(), seen.t, seen.process)

    def eps(self, tick: Tick, seen: Noised, guidance: Guidance | None) -> Tensor:
        with torch.no_grad():
            mapped = seen.eps_of(self.mapped(tick, seen))
        return seen.eps + like(self.share(seen), mapped) * (mapped - seen.eps)

    def share(self, seen: Noised) -> Tensor:
        """How much of ε_M counts at each level, float64 [B]."""
        return self.clean + (self.noisy - self.clean) * seen.process.fraction(seen.t)


@dataclass(frozen=True, kw_only=True)
class VariationalDistributionMapping(ScoreDistillation):
    """g = w(t)·(ε_T(x_t) − ε_M(x_t)): VSD at the price of SDS and a small map.

    Args: those of `ScoreDistillation`; ``fake=Mapped(shape=...)`` is needed, DreamMapping takes
    ``guidance=CFG(scale=7.5)``.

    Source: Cai et al. 2024, arXiv 2409.05099.

    >>> from limbeck import GaussianMixture, Particles, distill
    >>> teacher, student = GaussianMixture(means=torch.ones(1, 2), std=0.5), Particles(torch.zeros(8, 2))
    >>> vdm = VariationalDistributionMapping(fake=Mapped(shape=(2,)))
    >>> sorted(next(iter(distill(teacher, student, vdm, steps=1, batch=8))).losses)
    ['mapping', 'variationaldistributionmapping']
    """

    fake: Part  # pyright: ignore[reportGeneralTypeIssues], no default knows the shape of a sample
