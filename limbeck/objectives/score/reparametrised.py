"""Score distillation as reparametrised DDIM: the noise is the one that the teacher's ODE would have led here from."""

from dataclasses import dataclass, field

from limbeck.diffusion.guidance import CFG
from limbeck.diffusion.times import Annealed, Times, Uniform
from limbeck.objectives.score.distillation import ScoreDistillation
from limbeck.objectives.score.noise import Inverted, Noise
from limbeck.objectives.score.parts import Weight


@dataclass(frozen=True, kw_only=True)
class SDI(ScoreDistillation):
    """Score distillation via inversion, g = x − x0_T(x_t) with x_t by DDIM inversion of x under a negative guidance.

    That is σ/α·(ε_T(x_t) − ε) with the noise that inversion amounts to in the place of a random one; with random noise
    it is SDS. The released code adds noise along the inversion (η = 0.3), and denoises t + δ as if it were t; here
    inversion is exact.

    Args: those of `ScoreDistillation`; the authors take ``guidance=CFG(scale=8.5)``, 7.5 as they count.

    Source: Lukoianov et al. 2024, arXiv 2405.15891.

    >>> SDI().noise.guidance
    CFG(scale=-6.5)
    """

    noise: Noise = field(default_factory=lambda: Inverted(stride=0.1, gap=0.0, guidance=CFG(scale=-6.5)))
    weight: Weight = field(default_factory=lambda: Weight(sigma=1.0, alpha=-1.0))
    times: Times = field(
        default_factory=lambda: Annealed(first=Uniform(lo=0.98, hi=0.98), last=Uniform(lo=0.25, hi=0.25))
    )
