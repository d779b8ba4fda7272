"""What recipes share: the student that a problem offers, and checks that measure a ratio to an honest baseline."""

from dataclasses import replace

from torch import nn

from limbeck.diffusion import euler, sample
from limbeck.engine.recipe import Prior, Stage, Trial
from limbeck.engine.run import run_recipe
from limbeck.engine.student import Draw
from limbeck.evaluate.comparison import evaluate, judge, student_of
from limbeck.objectives import CrossEntropy
from limbeck.problems.problem import Problem


def student_network(problem: Problem, prior: Prior) -> nn.Module:
    """The problem's own student network, untrained."""
    return problem.network()


def one_step_frechet(trial: Trial) -> float:
    """The student's Fréchet distance over that of its teacher's full sampler, on the same fresh noise."""
    figures = evaluate(trial.student, trial.problem, seed=trial.seed)
    return figures["frechet"] / figures["frechet_teacher"]


def frechet_at_steps(steps: int):  # type: ignore[no-untyped-def]
    """The student's Fréchet distance over that of its teacher in so many Euler steps."""

    def check(trial: Trial) -> float:
        teacher, times = trial.problem.teacher, trial.problem.times.grid(steps, trial.problem.teacher.process)
        ours = judge(student_of(trial.student), trial.problem, seed=trial.seed)
        theirs = judge(
            lambda z, cond, _: Draw(sample(euler(teacher, z, times, cond)), cond), trial.problem, seed=trial.seed
        )
        return ours["frechet"] / theirs["frechet"]

    return check


def error_ratio(trial: Trial) -> float:
    """The student's held-out error over that of the same stage trained on labels alone."""
    plain = [replace(stage, objective=CrossEntropy()) for stage in trial.recipe.stages if isinstance(stage, Stage)]
    baseline = run_recipe(replace(trial.recipe, stages=tuple(plain)), trial.problem, seed=trial.seed)
    errors = [1 - trial.problem.accuracy(student) for student in (trial.student, baseline.student)]
    return errors[0] / errors[1]
