"""Phased DMD: experts for parts of the noise, each matched where its part ends, one after the other. arXiv 2510.27684.

No images: the run sees conditions alone. There are two phases, of which the second is the shorter. Experts are whole
networks (adapters in the paper), each with a critic of its own that takes as many steps as the expert (5).
"""

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from limbeck.engine import Claim, Paper, Prior, Recipe, Stage
from limbeck.objectives import Critic, Fake, Onward, PhasedDMD, Segment
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import against, apart
from limbeck.recipes.parts import conditions, generator, need_network
from limbeck.students import Phased, Trajectory

RATIOS = (3.0, 0.5)
TIMES = Segment(beyond=5.0)


def expert(k: int) -> Callable[[Generative, Prior], Trajectory]:
    """Makes the student of phase k: the earlier experts, frozen, and one that starts as the teacher."""

    def make(problem: Generative, prior: Prior) -> Trajectory:
        experts = [problem.network()]
        if k > 0:
            before = prior.student(f"phase{k}")
            assert isinstance(before, Trajectory) and isinstance(before.denoiser, Phased)
            # what an earlier phase left has experts
            experts = [*before.denoiser.clone(trainable=False).experts, *experts]  # type: ignore[list-item, misc]
        denoiser = Phased(experts, ratios=RATIOS[: k + 1])
        return Trajectory(denoiser, ratios=RATIOS, shape=problem.shape, only=(k,))

    return make


def matched(critic: str) -> PhasedDMD:
    """The objective of every phase, whose critic learns this."""
    # `critic` is one of the names that `Onward` knows
    fake = Fake(critic=Critic(times=TIMES, noise=Onward(critic=critic)))  # type: ignore[arg-type]
    return PhasedDMD(fake=fake, times=TIMES, critic_steps=1)


def naive(stage: Stage) -> Stage:
    """The same with a critic that takes what a step predicts for a clean sample under fresh noise."""
    return replace(stage, objective=matched("naive"))


def handed_over(student: nn.Module, problem: Generative, seed: int) -> float:
    """How far what a phase hands over to the next one is from data with noise of that level."""
    return apart(student, problem, seed, ends=slice(-1))


def recipe(problem: Generative, steps: int = 300) -> Recipe:
    need_network(problem, "phased-dmd")
    phases = [
        generator(f"phase{k + 1}", matched("state"), steps=ticks, data=conditions, student=expert(k))
        for k, ticks in enumerate((steps, steps // 3))
    ]
    return Recipe(
        stages=tuple(phases),
        paper=Paper("2510.27684", "Fan et al. 2025"),
        claim=Claim(
            text="where the first of two phases ends ≤ 0.75 × as far (sliced Wasserstein) from data with noise of that "
            "level as with critics that learn the predicted clean samples",
            check=against(naive, handed_over),
            bound=0.75,
            on="mixture2d-network",
        ),
    )
