"""DMAE: a student fills in images, and thinks of the patches that it sees as its teacher does. arXiv 2208.12256.

The teacher is a masked autoencoder of twice the width, trained first, without labels; both encoders see the same
quarter of an image, and the teacher's decoder is not asked. Then the student is trained on five labels a class. The
paper's teacher is larger and its training longer; plain KD has no place here, for nobody knows the labels but those.
"""

from dataclasses import replace

from limbeck.engine import Claim, Paper, Prior, Recipe, Stage, Trial
from limbeck.objectives import DMAE, CrossEntropy, Reconstruction
from limbeck.problems.digits_classify import DigitsClassify
from limbeck.problems.networks import ViT
from limbeck.recipes.claims import error, rerun_after
from limbeck.recipes.parts import autoencoder, encoder, learner, masked_images, result

TAP = "encoder.blocks.1"


def untrained(problem: DigitsClassify, prior: Prior) -> ViT:
    """The student's network without a past."""
    return ViT(size=8, classes=problem.classes, width=24)


def better(trial: Trial) -> float:
    """The held-out error over the lesser of a student's that only fills in, and of one's on labels for all ticks."""

    def alone(stage: Stage) -> Stage:
        return replace(stage, objective=Reconstruction()) if stage.name == "student" else stage

    def labels(stage: Stage) -> Stage:
        ticks = sum(s.steps for s in trial.recipe.stages[1:] if isinstance(s, Stage))
        return replace(stage, steps=1) if stage.name == "student" else replace(stage, student=untrained, steps=ticks)

    students = (trial.student, *(rerun_after(trial, "teacher", change) for change in (alone, labels)))
    ours, *theirs = (error(student, trial.problem, trial.seed) for student in students)
    return ours / min(theirs)


def recipe(problem: DigitsClassify, steps: int = 800) -> Recipe:
    quick = {"lr": 4e-3, "batch": 64}
    objective = Reconstruction() + DMAE(pairs={TAP: TAP})
    masked = {"data": masked_images, **quick}
    first = learner("teacher", Reconstruction(), steps=steps, student=autoencoder(48), **masked)
    second = learner("student", objective, steps=steps // 2, student=autoencoder(24), **masked)
    return Recipe(
        stages=(
            first,
            replace(second, teacher=result("teacher")),
            learner("dmae", CrossEntropy(), steps=steps // 4, student=encoder("student"), **quick),
        ),
        paper=Paper("2208.12256", "Bai et al. 2022"),
        claim=Claim(
            text="after as many ticks on five labels a class: mean held-out error ≤ 0.85 × the lesser of those of a "
            "masked autoencoder without a teacher, and of labels alone for all ticks",
            check=better,
            bound=0.85,
            on="digits-classify",
            seeds=5,
            mean=True,
        ),
    )
