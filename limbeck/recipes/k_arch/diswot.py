"""DisWOT: a student is searched for untrained, by how it resembles the untrained teacher. arXiv 2303.15678.

Evolution over the channels of small convolutional networks under a limit of multiply-adds. The score is how alike the
relations of examples and the gradients of classes are at random weights; no step is taken. Then the one that was found
learns by KD, with the same measures as losses, and that is what is claimed: on held-out images the relations of its
examples are nearer to the teacher's than by labels or by KD, and the gradients of its classes than by KD, though labels
alone bring those as near, or nearer. It errs no less: on 17 to 31 % of held-out images, by KD on 17 to 30, by labels on
8 to 20.

That the search finds good students did not show. Over cells of mixed cost the score goes with fewer errors, by rank
−0.1 to −0.4, but less than the count of parameters does, −0.64; over 100 cells of one cost without dead ends it goes
with more errors, 0.3 for relations, and −0.2 to 0.1 for classes. Classes are compared with each other where the
authors' code compares channels class by class, for students of any width.
"""

import copy
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from limbeck.engine import Claim, Make, Objective, Paper, Prior, Recipe, Trial
from limbeck.engine.taps import tap
from limbeck.errors import Incompatible
from limbeck.evaluate.classification import multiply_adds
from limbeck.objectives import KD, ClassSimilarity, CrossEntropy, SampleSimilarity, class_gradients, gram_gap
from limbeck.problems.digits import DigitFeatures
from limbeck.problems.digits_classify import DigitsClassify
from limbeck.problems.networks import ConvNet
from limbeck.recipes.claims import by, retrained
from limbeck.recipes.parts import learner
from limbeck.rng import Rng, seeded

CHANNELS, DEPTHS, LIMIT = (4, 8, 12, 16, 24, 32), (3, 4), 40_000
MAPS, LAST = ("blocks", "convs.5"), ("head:in", "head:in")
Widths = tuple[int, ...]


def drawn(rng: Rng, parent: Widths = ()) -> Widths:
    """Channels within the limit: a parent's with others at one place, or at random."""
    while True:
        widths = parent or tuple(CHANNELS[rng.integer(len(CHANNELS))] for _ in range(DEPTHS[rng.integer(len(DEPTHS))]))
        k = rng.integer(len(widths))
        widths = (*widths[:k], CHANNELS[rng.integer(len(CHANNELS))], *widths[k + 1 :])
        if multiply_adds(ConvNet(classes=10, widths=widths).eval(), torch.zeros(1, 1, 8, 8)) <= LIMIT:
            return widths


@torch.no_grad()
def seen(net: nn.Module, maps: str, last: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """What is compared of a network: maps of the examples, and `class_gradients`."""
    with tap(net, maps, last) as features:
        out = net(x)
    return features[maps], class_gradients(features[last], out, y)


def gaps(student: nn.Module, teacher: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """`gram_gap` of examples and of classes."""
    pairs = (seen(net, maps, last, x, y) for net, maps, last in zip((student, teacher), MAPS, LAST, strict=True))
    examples, classes = (gram_gap(s, t).item() for s, t in zip(*pairs, strict=True))
    return examples, classes


def search(problem: DigitsClassify, prior: Prior, folder: Path, seed: int) -> None:
    """Twelve candidates, then 24 children of the best four so far; writes down the best."""
    rng, scores, teacher = Rng((seed, "diswot")), dict[Widths, float](), copy.deepcopy(problem.teacher)
    batch = problem.source.take(128, rng)
    with seeded(seed, "untrained"):
        for layer in teacher.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.reset_parameters()
        for k in range(36):
            best = sorted(scores, key=lambda widths: scores[widths])[:4]
            widths = drawn(rng, best[rng.integer(len(best))] if k >= 12 else ())
            scores[widths] = sum(gaps(ConvNet(classes=10, widths=widths), teacher, batch["x"], batch["y"]))
    (folder / "found.json").write_text(json.dumps(min(scores, key=lambda widths: scores[widths])))


def found(problem: DigitsClassify, prior: Prior) -> ConvNet:
    """What the search found, untrained."""
    return ConvNet(classes=10, widths=tuple(json.loads((prior.folder("search") / "found.json").read_text())))


def again(trial: Trial, objective: Objective) -> nn.Module:
    """The same network, from the same weights at first, by another objective."""
    widths = tuple(part.out_channels for part in trial.student.modules() if isinstance(part, nn.Conv2d))
    return retrained(trial, by(objective, student=lambda problem, prior: ConvNet(classes=10, widths=widths)))


def alike(trial: Trial) -> float:
    """The larger ratio of held-out `gaps`: of examples over the lesser by labels and KD, of classes over KD's."""
    nets = (trial.student, again(trial, CrossEntropy()), again(trial, KD()))
    examples, classes = zip(
        *(gaps(net.eval(), trial.problem.teacher, *trial.problem.heldout) for net in nets), strict=True
    )
    return max(examples[0] / min(examples[1:]), classes[0] / classes[2])


def recipe(problem: DigitsClassify, steps: int = 200) -> Recipe:
    if not isinstance(problem.teacher, DigitFeatures):
        need, got = "a teacher that is a chain of convolutions", f"a {type(problem.teacher).__name__}"
        raise Incompatible("diswot", need=need, got=got, fit="digits-classify")
    similar = 30.0 * SampleSimilarity(pairs=dict([MAPS])) + 3.0 * ClassSimilarity(pairs=dict([LAST]))
    return Recipe(
        stages=(
            Make(name="search", make=search),
            learner("diswot", KD() + similar, steps=steps, student=found, batch=64),
        ),
        paper=Paper("2303.15678", "Dong et al. 2023"),
        claim=Claim(
            text="the network that the untrained search found: mean held-out distance to the teacher ≤ 0.9 × the "
            "lesser of those by labels and by KD in relations of examples, and ≤ 0.9 × that by KD in gradients of "
            "classes (the larger of both ratios); its error is not lower",
            check=alike,
            bound=0.9,
            on="digits-classify",
            seeds=5,
            mean=True,
        ),
    )
