"""JDM: a one-step student learns a control c that the teacher does not know. arXiv 2503.06652.

KL(q(x, c)‖p(x, c)) = E_c KL(q(x|c)‖p(x)) − E ln p(c|x) + const: fidelity to the teacher, which is asked without c, by a
critic that knows c; and condition learning, here by the exact p(c|x) in the place of a learned extractor's distance.
The critic is a network of its own (adapters), for the teacher is exact; both terms begin together (two phases), and
guidance and human feedback, which the paper adds, are left out. Noise levels are low, so that the diffused KL is the
plain one to a few percent and the optimum Bayes' posterior; w = 1/σ makes g a difference of scores.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from limbeck.diffusion import CFG, LogNormal
from limbeck.engine import Claim, Paper, Recipe, Trial
from limbeck.evaluate.comparison import student_of
from limbeck.objectives import Critic, Fake, Measured, Reward, ScoreDistillation, Teacher, Weight
from limbeck.problems.measured2d import Measured2D
from limbeck.recipes.claims import against
from limbeck.recipes.parts import conditions, generator
from limbeck.rng import Rng

TIMES = LogNormal(mean=-1.6, std=0.5)


def bures(mean: Tensor, cov: Tensor, mean2: Tensor, cov2: Tensor) -> Tensor:
    """Squared 2-Wasserstein distance of Gaussians in the plane with these moments, [B].

    tr √(C₁C₂) = √(tr C₁C₂ + 2√(det C₁C₂)) for 2 × 2 matrices.
    """
    both = cov @ cov2
    trace = both.diagonal(dim1=-2, dim2=-1).sum(-1)
    root = (trace + 2 * torch.linalg.det(both).clamp_min(0).sqrt()).clamp_min(0).sqrt()
    return ((mean - mean2) ** 2).sum(-1) + (cov + cov2).diagonal(dim1=-2, dim2=-1).sum(-1) - 2 * root


def from_posterior(student: nn.Module | None, problem: Measured2D, seed: int) -> float:
    """`bures` from samples under one c to p(x|c), mean over 32 measurements c with 1 000 samples each.

    Without a student, of samples of p(x), which know nothing of c.
    """
    rng = Rng((seed, "posterior"))
    cond = problem.conditions(32, rng).repeat_interleave(1000, 0)
    noise = rng.normal(len(cond), 2)
    x = (student_of(student)(noise, cond, rng).x if student else problem.teacher.sample(len(cond), rng)).double()
    x = x.reshape(32, 1000, 2)
    mean, away = x.mean(1), x - x.mean(1, keepdim=True)
    return (
        bures(mean, away.mT @ away / 1000, *(part.double() for part in problem.posterior(cond[::1000]))).mean().item()
    )


def consistent(problem: Measured2D) -> Reward:
    """Condition learning, −ln p(c|x)."""
    return Reward(reward=Measured(matrix=(problem.along,), std=problem.std))


def halves(trial: Trial) -> float:
    """`from_posterior` over that of what lacks a half, the nearer one: p(x) itself, or condition learning alone."""
    problem, seed = trial.problem, trial.seed
    ratio = against(lambda stage: replace(stage, objective=consistent(problem)), from_posterior)(trial)
    return max(ratio, from_posterior(trial.student, problem, seed) / from_posterior(None, problem, seed))


def recipe(problem: Measured2D, steps: int = 400) -> Recipe:
    real, fake = Teacher(guidance=CFG(scale=0.0)), Fake(critic=Critic(times=TIMES))
    fidelity = ScoreDistillation(real=real, fake=fake, weight=Weight(sigma=-1.0, alpha=1.0), times=TIMES)
    return Recipe(
        stages=(generator("jdm", fidelity + consistent(problem), steps=steps, lr=2e-3, data=conditions),),
        paper=Paper("2503.06652", "Luo et al. 2025"),
        claim=Claim(
            text="samples under c are ≤ 0.1 × as far from p(x|c), in squared 2-Wasserstein distance of their moments, "
            "as samples of p(x), and as the same run without fidelity",
            check=halves,
            bound=0.1,
            on="measured2d",
        ),
    )
