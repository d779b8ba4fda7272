"""Checks that several recipes share: each measures one figure of a trial as a ratio to an honest baseline."""

from limbeck.engine.recipe import Trial
from limbeck.evaluate.comparison import evaluate


def one_step_frechet(trial: Trial) -> float:
    """The student's Fréchet distance over that of its teacher's full sampler, on the same fresh noise."""
    figures = evaluate(trial.student, trial.problem, seed=trial.seed)
    return figures["frechet"] / figures["frechet_teacher"]
