"""G2SD: first what a masked autoencoder thinks of all patches, then what it says of classes. arXiv 2302.14771.

The generic stage has no labels: the student's decoder, which sees a quarter of an image, is to have the features of
the teacher's. The specific stage drops the decoders: the encoder learns from five labels a class, and by KD from the
teacher's encoder, which was trained on these labels before.

As with DMAE it is measured after few ticks of the specific stage; with many the generic one is not needed here.
"""

from dataclasses import replace

from limbeck.engine import Claim, Paper, Recipe, Trial
from limbeck.objectives import G2SD, KD, CrossEntropy, Reconstruction
from limbeck.problems.digits_classify import DigitsClassify
from limbeck.recipes.claims import at, by, over_least, rerun_after
from limbeck.recipes.parts import autoencoder, encoder, learner, masked_images, staged, transformer

WIDTH = 24


def sooner(trial: Trial) -> float:
    """The held-out error over the least of those of pixels in the place of features, and of KD and labels alone."""
    pixels = rerun_after(trial, "expert", at("generic", by(Reconstruction())))
    fresh = rerun_after(trial, "generic", lambda stage: replace(stage, student=transformer(WIDTH)))
    labels = rerun_after(trial, "generic", by(CrossEntropy(), student=transformer(WIDTH)))
    return over_least(trial, pixels, fresh, labels)


def recipe(problem: DigitsClassify, steps: int = 800) -> Recipe:
    quick = {"lr": 4e-3, "batch": 64}
    masked = {"data": masked_images, **quick}
    objective = G2SD(pairs={"decoder": "decoder"})
    generic = learner("generic", objective, steps=steps // 2, student=autoencoder(WIDTH), **masked)
    specific = learner("g2sd", KD(), steps=steps // 8, student=encoder("generic"), **quick)
    return Recipe(
        stages=(
            learner("teacher", Reconstruction(), steps=steps, student=autoencoder(2 * WIDTH), **masked),
            learner("expert", CrossEntropy(), steps=steps // 4, student=encoder("teacher"), **quick),
            replace(generic, teacher=staged("teacher")),
            replace(specific, teacher=staged("expert")),
        ),
        paper=Paper("2302.14771", "Huang et al. 2023"),
        claim=Claim(
            text="after 100 ticks of the specific stage: mean held-out error ≤ 0.9 × the least of those with a generic "
            "stage that fills in pixels, and of the same 100 ticks of KD, or on labels, without a generic stage",
            check=sooner,
            bound=0.9,
            on="digits-classify",
            seeds=5,
            mean=True,
        ),
    )
