"""PLD: a ranking loss by label and teacher in the place of cross-entropy, with no weight to tune. arXiv 2506.12542.

The teacher is so sure that its confidence is taken at temperature 4, as in the KD beside which it is measured.
"""

from math import inf

from limbeck.engine import Claim, Paper, Recipe, Trial
from limbeck.evaluate.classification import judge_classifier
from limbeck.objectives import KD, PLD, CrossEntropy
from limbeck.problems.problem import Classification
from limbeck.recipes.claims import by, rerun
from limbeck.recipes.parts import learner


def surer(trial: Trial) -> float:
    """−ln p of the label over the lesser of both baselines; infinite where a third more is wrong than by KD."""
    problem, others = trial.problem, [rerun(trial, by(objective)) for objective in (CrossEntropy(), KD())]
    ours, *theirs = (judge_classifier(student, problem) for student in (trial.student, *others))
    wrong = [1 - figures["accuracy"] for figures in (ours, theirs[-1])]
    return ours["nll"] / min(figures["nll"] for figures in theirs) if wrong[0] <= 4 / 3 * wrong[1] else inf


def recipe(problem: Classification, steps: int = 1_000) -> Recipe:
    return Recipe(
        stages=(learner("pld", PLD(temperature=4.0), steps=steps),),
        paper=Paper("2506.12542", "Bassam et al. 2025"),
        claim=Claim(
            text="held-out −ln p ≤ 0.9 × the lesser of those by labels alone and by plain KD, error ≤ 4/3 × that of KD",
            check=surer,
            bound=0.9,
            on="digits-classify",
            seeds=5,
        ),
    )
