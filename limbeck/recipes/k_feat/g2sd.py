"""G2SD: first what a masked autoencoder thinks of all patches, then what it says of classes. arXiv 2302.14771.

The generic stage has no labels: the student's decoder, which sees a quarter of an image, is to have the features of
the teacher's. The specific stage drops the decoders: the encoder learns from five labels a class, and by KD from the
teacher's encoder, which was trained on these labels before.
"""

from dataclasses import replace

from limbeck.engine import Claim, Paper, Prior, Recipe, Stage, Trial
from limbeck.objectives import G2SD, KD, CrossEntropy, Reconstruction
from limbeck.problems.digits_classify import DigitsClassify
from limbeck.problems.networks import ViT
from limbeck.recipes.claims import error, rerun_after
from limbeck.recipes.parts import autoencoder, encoder, learner, masked_images, result


def untrained(problem: DigitsClassify, prior: Prior) -> ViT:
    """The student's network without a past."""
    return ViT(size=8, classes=problem.classes, width=24)


def better(trial: Trial) -> float:
    """The held-out error over the lesser of a student's that filled in pixels, and of one's by KD for all ticks."""

    def pixels(stage: Stage) -> Stage:
        return replace(stage, objective=Reconstruction()) if stage.name == "generic" else stage

    def specific(stage: Stage) -> Stage:
        ticks = sum(s.steps for s in trial.recipe.stages[2:] if isinstance(s, Stage))
        return replace(stage, steps=1) if stage.name == "generic" else replace(stage, student=untrained, steps=ticks)

    students = (trial.student, *(rerun_after(trial, "expert", change) for change in (pixels, specific)))
    ours, *theirs = (error(student, trial.problem, trial.seed) for student in students)
    return ours / min(theirs)


def recipe(problem: DigitsClassify, steps: int = 800) -> Recipe:
    quick = {"lr": 4e-3, "batch": 64}
    masked = {"data": masked_images, **quick}
    generic = learner(
        "generic", G2SD(pairs={"decoder": "decoder"}), steps=steps // 2, student=autoencoder(24), **masked
    )
    specific = learner("g2sd", KD(), steps=steps // 4, student=encoder("generic"), **quick)
    return Recipe(
        stages=(
            learner("teacher", Reconstruction(), steps=steps, student=autoencoder(48), **masked),
            learner("expert", CrossEntropy(), steps=steps // 4, student=encoder("teacher"), **quick),
            replace(generic, teacher=result("teacher")),
            replace(specific, teacher=result("expert")),
        ),
        paper=Paper("2302.14771", "Huang et al. 2023"),
        claim=Claim(
            text="mean held-out error ≤ 0.9 × the lesser of those of a student that filled in pixels in the place of "
            "the generic stage, and of one by labels and KD alone for all ticks",
            check=better,
            bound=0.9,
            on="digits-classify",
            seeds=5,
            mean=True,
        ),
    )
