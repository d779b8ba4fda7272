"""PSO: a distilled few-step generator moves to new data by pairs of them and of its own samples. arXiv 2410.03190.

Offline pairs: the data are those of the problem with 0.18 added to every number, which stands for another style. All
weights learn (adapters in the paper), and the last step is Gaussian too, with a standard deviation of 0.1.
"""

from copy import deepcopy

import torch
from torch import nn

from limbeck.diffusion import LogNormal
from limbeck.engine import EMA, Adam, Claim, Drawn, Linear, Paper, Prior, Recipe, Source, Stage, Trial, distill
from limbeck.engine.data import Batch
from limbeck.evaluate.comparison import fresh, student_of
from limbeck.evaluate.metrics import sliced_wasserstein
from limbeck.objectives import DMD, PSO, Critic, Denoising, Fake
from limbeck.problems.problem import Generative
from limbeck.recipes.parts import generator, need_network
from limbeck.rng import Rng
from limbeck.students import FewStep, FromTeacher

SHIFT = 0.18
TIMES = LogNormal(mean=-0.5, std=1.2)
LEARN = {"default": Adam(lr=5e-4, betas=(0.9, 0.99), schedule=Linear())}


def recipe(problem: Generative, steps: int = 250) -> Recipe:
    need_network(problem, "pso")
    dmd = DMD(fake=Fake(critic=Critic(times=TIMES)), times=TIMES, critic_steps=2)
    distil = generator("distil", dmd, steps=400, student=FromTeacher(ratios=(problem.ratio, problem.ratio / 4)))
    tune = Stage(
        name="tune", steps=steps, objective=PSO(), student=distilled, data=other, optim=LEARN, ema=EMA(decay=0.95)
    )
    return Recipe(
        stages=(distil, tune),
        paper=Paper("2410.03190", "Miao et al. 2024"),
        claim=Claim(
            text="two steps ≤ 0.8 × the sliced Wasserstein distance of the same fine-tuning by denoising, or of none",
            check=against_denoising,
            bound=0.8,
            on="mixture2d-network",
        ),
    )


def distilled(problem: Generative, prior: Prior) -> nn.Module:
    return deepcopy(prior.student("distil")).requires_grad_(True)


def other(problem: Generative, prior: Prior) -> Source:
    """The problem's data in the other style."""
    source = problem.source
    assert source is not None

    def make(n: int, rng: Rng) -> Batch:
        batch = source.take(n, rng)
        return {**batch, "x": batch["x"] + SHIFT}

    return Drawn(make, fields=tuple(source.fields))


def against_denoising(trial: Trial) -> float:
    """The distance to the new data, over that of the student before, or tuned by denoising, whichever is nearer."""
    problem, before = trial.problem, trial.prior.student("distil")
    stage = trial.recipe.stages[-1]
    assert isinstance(before, FewStep) and isinstance(stage, Stage)
    naive, seed = Denoising(times=TIMES), (trial.seed, "naive")
    net = deepcopy(before.denoiser).requires_grad_(True)
    data = other(problem, trial.prior)
    net = distill(None, net, naive, data, steps=stage.steps, optim=stage.optim, ema=stage.ema, seed=seed).finish()
    # a denoiser went in, so one comes out
    tuned = FewStep(net, ratios=before.ratios, shape=before.shape)  # type: ignore[arg-type]

    @torch.no_grad()
    def distance(student: nn.Module) -> float:
        x = student_of(student)(*fresh(problem, 5000, trial.seed)).x
        return sliced_wasserstein(problem.features(x), problem.features(problem.reference() + SHIFT))

    return distance(trial.student) / min(distance(tuned), distance(before))
