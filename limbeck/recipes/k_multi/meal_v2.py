"""MEAL V2: the average of several teachers' probabilities, and a discriminator, without labels. arXiv 2009.08453.

Eight networks of the student's own kind have each seen another eighth of the images with labels. The student starts
from what the 50 labels of the problem taught it, and then sees all images without any. What helps is the average:
without the discriminator the error is as low. The paper's teachers are larger than its student, and in its code student
and discriminator descend one and the same loss; here they are adversaries.
"""

from torch import nn

from limbeck.engine import Claim, Paper, Prior, Recipe, Source, Stage
from limbeck.objectives import KD, CrossEntropy, OutputGAN
from limbeck.problems.digits import jittered, split
from limbeck.problems.digits_classify import DigitsClassify
from limbeck.recipes.claims import by, last_beats
from limbeck.recipes.parts import copied, learner, staged
from limbeck.rng import Rng
from limbeck.teachers import Ensemble

TEACHERS = tuple(f"teacher {k}" for k in range(8))


def part(k: int) -> Source:
    """The k-th eighth of the images, drawn at random, with labels."""
    x, y, _, _ = split()
    rows = Rng(("parts",)).uniform(len(x)).argsort()[k :: len(TEACHERS)]
    return jittered(x[rows], y[rows])


def average(problem: DigitsClassify, prior: Prior) -> nn.Module:
    """All teachers as one."""
    return Ensemble(*(prior.student(name) for name in TEACHERS))


def unlabelled(problem: DigitsClassify, prior: Prior) -> Source:
    """All images; their labels are not looked at."""
    x, y, _, _ = split()
    return jittered(x, y)


def labelled(problem: DigitsClassify, prior: Prior) -> Source:
    """The few images with labels."""
    return problem.source


def taught(name: str, k: int, steps: int) -> Stage:
    """One of the teachers."""
    return learner(name, CrossEntropy(), steps=steps, data=lambda problem, prior: part(k))


def recipe(problem: DigitsClassify, steps: int = 600, before: int = 200) -> Recipe:
    objective = KD(alpha=1.0, temperature=1.0) + 0.2 * OutputGAN()
    return Recipe(
        stages=(
            *(taught(name, k, before) for k, name in enumerate(TEACHERS)),
            learner("pretrained", CrossEntropy(), steps=before),
            learner("meal-v2", objective, steps=steps, teacher=average, student=copied("pretrained"), data=unlabelled),
        ),
        paper=Paper("2009.08453", "Shen & Savvides 2020"),
        claim=Claim(
            text="mean held-out error ≤ 0.95 × the lesser of those by the 50 labels there are, and by KD from one of "
            "the teachers on the same images",
            check=last_beats(
                by(CrossEntropy(), data=labelled),
                by(KD(alpha=1.0), teacher=staged(TEACHERS[0])),
                by(KD(alpha=1.0, temperature=1.0), teacher=staged(TEACHERS[0])),
            ),
            bound=0.95,
            on="digits-classify",
            seeds=5,
            mean=True,
        ),
    )
