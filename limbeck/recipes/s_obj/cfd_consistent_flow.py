"""CFD: samples follow the teacher's ODE by gradient steps, with noise that sticks to them. arXiv 2501.05445.

The rate is the one with which a step is DDIM's, and guidance is none (75 in the paper).
"""

from dataclasses import replace

from limbeck.diffusion import Annealed, Uniform
from limbeck.engine import SGD, Adam, Claim, Cosine, Paper, Recipe, Stage
from limbeck.objectives import CFD, SDS, EulerRate
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import against, variance_error
from limbeck.recipes.parts import particles


def by_fresh_noise(stage: Stage) -> Stage:
    """SDS, with noise levels and a rate that suit it."""
    sds = SDS(times=Annealed(first=Uniform(hi=0.4), last=Uniform(hi=0.2)))
    return replace(stage, objective=sds, optim={"default": Adam(lr=0.02, schedule=Cosine())})


def recipe(problem: Generative, steps: int = 1_000) -> Recipe:
    n, cfd = problem.particles, CFD()
    rate = EulerRate(times=cfd.times, process=problem.teacher.process, steps=steps)
    optim = {"default": SGD(lr=n, schedule=rate)}
    return Recipe(
        stages=(particles("cfd", cfd, steps=steps, batch=n, optim=optim),),
        paper=Paper("2501.05445", "Yan et al. 2025"),
        claim=Claim(
            text="the variance of particles around modes is at most 0.25 × as far from the teacher's as that of SDS",
            check=against(by_fresh_noise, variance_error),
            bound=0.25,
            on="mixture2d",
        ),
    )
