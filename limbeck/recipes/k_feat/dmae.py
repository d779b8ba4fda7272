"""DMAE: a student fills in images, and thinks of the patches that it sees as its teacher does. arXiv 2208.12256.

The teacher is a masked autoencoder of twice the width, trained first, without labels; both encoders see the same
quarter of an image, and the teacher's decoder is not needed. Then the student learns from five labels a class.

What is measured is how soon: with 100 ticks on labels 0.4 is wrong, 0.6 after filling in without a teacher, and 0.5
without a past. So few labels suffice for so small a transformer that it needs no past if it has more time: after 600
ticks on them alone 0.22 is wrong. Plain KD has no place here, for no teacher knows the classes.
"""

from dataclasses import replace

from limbeck.engine import Claim, Paper, Recipe, Trial
from limbeck.objectives import DMAE, CrossEntropy, Reconstruction
from limbeck.problems.digits_classify import DigitsClassify
from limbeck.recipes.claims import at, by, over_least, rerun_after
from limbeck.recipes.parts import autoencoder, encoder, learner, masked_images, staged, transformer

WIDTH, TAP = 24, "encoder.blocks.1"


def sooner(trial: Trial) -> float:
    """The held-out error over the lesser of students that fill in without a teacher, and without a past."""
    alone = rerun_after(trial, "teacher", at("student", by(Reconstruction())))
    fresh = rerun_after(trial, "student", lambda stage: replace(stage, student=transformer(WIDTH)))
    return over_least(trial, alone, fresh)


def recipe(problem: DigitsClassify, steps: int = 800) -> Recipe:
    quick = {"lr": 4e-3, "batch": 64}
    masked = {"data": masked_images, **quick}
    objective = Reconstruction() + DMAE(pairs={TAP: TAP})
    student = learner("student", objective, steps=steps // 2, student=autoencoder(WIDTH), **masked)
    return Recipe(
        stages=(
            learner("teacher", Reconstruction(), steps=steps, student=autoencoder(2 * WIDTH), **masked),
            replace(student, teacher=staged("teacher")),
            learner("dmae", CrossEntropy(), steps=steps // 8, student=encoder("student"), **quick),
        ),
        paper=Paper("2208.12256", "Bai et al. 2022"),
        claim=Claim(
            text="after 100 ticks on five labels a class: mean held-out error ≤ 0.9 × the lesser of those of a masked "
            "autoencoder as long trained without a teacher, and of the same 100 ticks without any training before",
            check=sooner,
            bound=0.9,
            on="digits-classify",
            seeds=5,
            mean=True,
        ),
    )
