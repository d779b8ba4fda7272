"""DMDR: a reward is climbed while distribution matching holds the samples to the teacher. arXiv 2511.13649.

One step on points in the plane, whose first number is the reward. At first the real score has the critic's adapters on
at a falling strength, and noise levels are high; both are as usual by half the run, and the reward weighs in by then
(after a cold start in the paper). Images, GANs and data have no part in it.
"""

from copy import deepcopy
from dataclasses import replace

import torch
from torch import nn

from limbeck.diffusion import Annealed, LogNormal
from limbeck.engine import Adam, Claim, Linear, Objective, Paper, Recipe, Stage, Trial, distill
from limbeck.engine.run import run_recipe
from limbeck.evaluate.comparison import fresh, student_of
from limbeck.objectives import DMD, Adapted, Critic, Direction, Fake, Reward
from limbeck.problems.mixture2d_network import Mixture2DNetwork
from limbeck.problems.problem import Generative
from limbeck.recipes.parts import generator, need_network

REWARD = Direction(along=(1.0,))


def matching() -> Objective:
    """DMD with the two strategies of the cold start."""
    late = LogNormal(mean=-0.5, std=1.2)
    critic = Critic(times=late, rank=16)
    real = Adapted(critic=critic, strength=Linear(first=0.375, last=0.0, until=0.5))
    times = Annealed(first=LogNormal(mean=1.0, std=0.6), last=late, until=0.5)
    return DMD(real=real, fake=Fake(critic=critic), times=times, critic_steps=2)


def recipe(problem: Generative, steps: int = 500) -> Recipe:
    need_network(problem, "dmdr")
    ramp = Linear(first=0.0, last=0.15, until=0.5)
    return Recipe(
        stages=(generator("dmdr", matching() + ramp * Reward(reward=REWARD), steps=steps, lr=1e-3),),
        paper=Paper("2511.13649", "Jiang et al. 2025"),
        claim=Claim(
            text="at equal reward, ≤ 0.5 × as much of it is had by leaving the modes as in a climb held by weights",
            check=hacked_at_equal_reward,
            bound=0.5,
            on="mixture2d-network",
        ),
    )


def hacked_at_equal_reward(trial: Trial) -> float:
    """The reward that is had by leaving modes, over that of the other way to as much reward in all.

    That way is the same distillation without a reward, then a climb held by its weights. Where modes are sharp, a
    tilted density p·exp(r/β) has its reward from the modes' weights.
    """
    problem, (stage,) = trial.problem, trial.recipe.stages
    assert isinstance(stage, Stage) and isinstance(problem, Mixture2DNetwork)
    noise, cond, rng = fresh(problem, 5000, trial.seed)

    def rewards(student: nn.Module) -> tuple[float, float]:
        """In all, and by the way from each sample's mode to it."""
        x, teacher = student_of(student)(noise, cond, rng).x, problem.exact
        mode = torch.cdist(x, teacher.means).masked_fill(teacher.labels != cond[:, None], torch.inf).argmin(1)
        return REWARD(x, cond).mean().item(), REWARD(x - teacher.means[mode], cond).mean().item()

    plain = replace(trial.recipe, stages=(replace(stage, objective=matching()),))
    start = deepcopy(run_recipe(plain, problem, seed=trial.seed).student).requires_grad_(True)
    climb, optim = Reward(reward=REWARD, hold=0.03), Adam(lr=2e-4, betas=(0.9, 0.99))
    run = distill(None, start, climb, problem.source, steps=stage.steps, optim=optim, seed=(trial.seed, "climb"))
    ours, theirs = rewards(trial.student), rewards(run.student)
    while run.i < run.steps and theirs[0] < ours[0]:
        run.tick()
        theirs = rewards(run.student)
    return ours[1] / theirs[1]
