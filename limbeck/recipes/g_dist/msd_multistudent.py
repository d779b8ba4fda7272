"""MSD: several small one-step students share the conditions out: the teacher's scores, then DMD. arXiv 2410.23274.

The students are experts behind one router and share a run and a conditional critic, which is the same as runs of their
own where conditions do not overlap, but for what the critic shares. Labels are dealt out modulo their number. The last,
adversarial stage is left out; a critic takes one step to one of the students (5), and g is DMD2's.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from limbeck.engine import Claim, Paper, Prior, Recipe, Stage
from limbeck.errors import Incompatible
from limbeck.objectives import DMD, Critic, Fake, TeacherDenoising
from limbeck.problems.networks import ResidualMLP
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import against
from limbeck.recipes.parts import TIMES, generator
from limbeck.students import OneStep, Routed
from limbeck.teachers import Trained


@dataclass(frozen=True, kw_only=True)
class Experts:
    """Makes small untrained networks behind a router.

    Args:
        count: of the networks.
        width: of each.
    """

    count: int = 4
    width: int = 3

    def __call__(self, problem: Generative, prior: Prior) -> Routed:
        labels, teacher = problem.spread(1000), problem.teacher
        if not isinstance(labels, Tensor) or labels.is_floating_point():
            raise Incompatible("msd-multistudent", need="conditions that are labels", got="others", fit="mixture2d")
        sizes = {"shape": problem.shape, "classes": int(labels.max()) + 1, "width": self.width, "blocks": 1}
        nets = [ResidualMLP(**sizes) for _ in range(self.count)]
        return Routed([Trained(net, sigma_data=teacher.sigma_data, process=teacher.process) for net in nets])


def grown(problem: Generative, prior: Prior) -> OneStep:
    """The generators, which start as the small denoisers."""
    small = prior.student("scores")
    assert isinstance(small, Routed)
    return OneStep(small.clone(trainable=True), shape=problem.shape, ratio=problem.ratio)


def alone(stage: Stage) -> Stage:
    """One student of that size for all conditions."""
    return replace(stage, student=Experts(count=1)) if isinstance(stage.student, Experts) else stage


def recipe(problem: Generative, steps: int = 300) -> Recipe:
    dmd = DMD(fake=Fake(critic=Critic(times=TIMES)), times=TIMES, critic_steps=1)
    return Recipe(
        stages=(
            generator("scores", TeacherDenoising(times=TIMES), steps=steps, lr=5e-3, student=Experts()),
            generator("msd", dmd, steps=steps, lr=2e-3, student=grown),
        ),
        paper=Paper("2410.23274", "Song et al. 2024"),
        claim=Claim(
            text="four students ≤ 0.9 × the sliced Wasserstein distance of one student of that width: as many ticks "
            "and examples, and a sample as dear",
            check=against(alone),
            bound=0.9,
            on="mixture2d-network",
        ),
    )
