"""TDM: a deterministic few-step student, matched with its teacher within the segment of each step. arXiv 2503.06674.

No images: the run sees conditions alone. One number of steps, so the network need not be told it. The critic learns the
score of the path's marginals and takes as many steps as the student.
"""

from limbeck.engine import Claim, Paper, Recipe, Trial
from limbeck.objectives import TDM
from limbeck.problems.problem import Generative
from limbeck.recipes.claims import apart
from limbeck.recipes.parts import conditions, generator, need_network
from limbeck.students import FromTeacher, Trajectory

RATIOS = (3.0, 0.8, 0.4, 0.15)


def as_its_teacher(trial: Trial) -> float:
    """`apart` of the student, over that of its teacher by as many steps of DDIM."""
    student, problem = trial.student, trial.problem
    assert isinstance(student, Trajectory)
    teacher = Trajectory(problem.teacher, ratios=student.ratios, shape=student.shape)
    return apart(student, problem, trial.seed) / apart(teacher, problem, trial.seed)


def recipe(problem: Generative, steps: int = 400) -> Recipe:
    need_network(problem, "tdm")
    student = FromTeacher(ratios=RATIOS, kind=Trajectory)
    return Recipe(
        stages=(generator("tdm", TDM(), steps=steps, data=conditions, student=student),),
        paper=Paper("2503.06674", "Luo et al. 2025"),
        claim=Claim(
            text="after each of four steps ≤ 0.65 × as far (sliced Wasserstein, mean) from data with noise of that "
            "level as the teacher's own four steps of DDIM",
            check=as_its_teacher,
            bound=0.65,
            on="mixture2d-network",
        ),
    )
