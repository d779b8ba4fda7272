"""PGC: each pixel's gradient is clipped before it goes into the student, so that no outlier leads. arXiv 2310.12474.

The paper's outliers come from the slope of a latent's encoder; the claim multiplies one entry in a hundred by 1 000.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from limbeck.diffusion import Annealed, Uniform
from limbeck.engine import Adam, Claim, Cosine, Paper, Recipe, Stage, Tick, Trial
from limbeck.objectives import SDS, Gradient, PixelClip, Shape
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import rerun, to_mode
from limbeck.recipes.parts import particles


@dataclass(frozen=True, kw_only=True)
class Spikes(Shape):
    """What a badly conditioned encoder does to a gradient: a share of the pixels is multiplied by ``size``."""

    share: float = 0.01
    size: float = 1e3

    def __call__(self, gradient: Gradient, tick: Tick) -> Tensor:
        g = gradient.g
        hit = tick.rng(("spikes", self)).uniform(len(g), 1, *g.shape[2:]) < self.share
        return g.where(~hit, self.size * g)


TIMES = Annealed(first=Uniform(hi=0.4), last=Uniform(hi=0.2))
CLIP = PixelClip(limit=0.1)


def spiked(*shape: Shape, clip: float | None = None) -> Callable[[Stage], Stage]:
    """A stage with outliers, then these shapes, then clipping by the norm of all gradients together."""
    optim = {"default": Adam(lr=0.02, schedule=Cosine(), clip=clip)}
    return lambda stage: replace(stage, objective=SDS(times=TIMES, shape=(Spikes(), *shape)), optim=optim)


def better(trial: Trial) -> float:
    """With outliers, the distance to modes over that without clipping, or with that of the norm if it is nearer."""
    ours = to_mode(rerun(trial, spiked(CLIP)), trial.problem, trial.seed)
    return max(ours / to_mode(rerun(trial, spiked(clip=clip)), trial.problem, trial.seed) for clip in (None, 0.1))


def recipe(problem: Generative, steps: int = 600) -> Recipe:
    return Recipe(
        stages=(particles("pgc", SDS(times=TIMES, shape=(CLIP,)), steps=steps),),
        paper=Paper("2310.12474", "Pan et al. 2023"),
        claim=Claim(
            text="with outliers, particles end ≤ 0.5 × as far from modes as without clipping or with the common norm's",
            check=better,
            bound=0.5,
            on="mixture2d",
        ),
    )
