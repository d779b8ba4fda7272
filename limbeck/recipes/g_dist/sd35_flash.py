"""SD3.5-Flash: timestep sharing, teacher and critic compared at the student's own states. arXiv 2509.21318.

No images: the run sees conditions alone. There are two steps; where the last one ends there is no noise, and it is
looked at under fresh noise of a low level. The critic learns within each step's segment, down to those states. Left
out: initial matching of trajectories, the adversarial loss, and fine-tuning copies on parts of the noise levels whose
weights are then merged.
"""

from dataclasses import replace

from limbeck.engine import Claim, Paper, Recipe, Stage
from limbeck.objectives import DMD, Critic, Fake, Onward, Segment
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import against, apart
from limbeck.recipes.parts import TIMES, conditions, generator, need_network
from limbeck.students import FromTeacher, Trajectory

RATIOS = (5.0, 1.0)
OWN = Segment(hi=0.0, floor=0.15)


def renoised(stage: Stage) -> Stage:
    """The same with clean samples that are noised anew, at levels that have nothing to do with the steps."""
    return replace(stage, objective=DMD(fake=Fake(critic=Critic(times=TIMES)), times=TIMES, critic_steps=2))


def recipe(problem: Generative, steps: int = 120) -> Recipe:
    need_network(problem, "sd35-flash")
    critic = Critic(times=Segment(), noise=Onward())
    shared = DMD(fake=Fake(critic=critic), times=OWN, noise=Onward(), critic_steps=2)
    student = FromTeacher(ratios=RATIOS, kind=Trajectory)
    return Recipe(
        stages=(generator("sd35-flash", shared, steps=steps, data=conditions, student=student),),
        paper=Paper("2509.21318", "Bandyopadhyay et al. 2025"),
        claim=Claim(
            text="after each of two steps ≤ 0.85 × as far (sliced Wasserstein, mean) from data with noise of that "
            "level as when clean samples are noised anew",
            check=against(renoised, apart),
            bound=0.85,
            on="mixture2d-network",
        ),
    )
