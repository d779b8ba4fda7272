"""Hybrid Distill: features of a supervised teacher, and attention of a masked autoencoder. arXiv 2306.15876.

The student sees images without labels. It is to have the layer-normed features with which the supervised teacher ends,
through a linear projector, and in its second block attention and relations of values as in the masked autoencoder.

What is claimed is that it has both, which nobody has by one teacher. At this size it is no gain in accuracy: a linear
probe errs by 0.12 after features alone, which is less than with attention, by 0.18 after KD, by 0.21 after 50 labels
alone, and by 0.49 after attention alone, for the masked autoencoder itself knows little of such small digits, 0.46.
Attention is weighed by 0.03, where the paper's weights are equal: the more it weighs, the more errors, 0.17 at 0.1.
Redundant tokens are not masked here.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.engine import Claim, Drawn, Paper, Prior, Recipe, Source, Trial
from limbeck.engine.taps import tap
from limbeck.objectives import G2SD, KD, CrossEntropy, MiniLM, Reconstruction, relation
from limbeck.problems.digits import jitter, split
from limbeck.problems.digits_classify import DigitsClassify
from limbeck.problems.digits_vit import DigitsViT
from limbeck.problems.masked import MaskedAutoencoder
from limbeck.problems.problem import evaluating
from limbeck.recipes.claims import by, retrained
from limbeck.recipes.parts import autoencoder, learner, masked_images, transformer

WIDTH, HEADS, LOOKS = 24, 4, tuple(f"blocks.1.self_attn.{part}" for part in ("queries", "keys", "values"))


def masked(prior: Prior) -> nn.Module:
    """The transformer in the masked autoencoder."""
    net = prior.student("masked")
    assert isinstance(net, MaskedAutoencoder)
    return net.encoder


def teachers(problem: DigitsClassify, prior: Prior) -> dict[str, nn.Module]:
    """Both by name."""
    return {"teacher": problem.teacher, "masked": masked(prior)}


def unlabelled(problem: DigitsClassify, prior: Prior) -> Source:
    """Fresh views of all images, without labels."""
    x = problem.unlabelled
    return Drawn(lambda n, rng: {"x": jitter(x[rng.integers(n, len(x))], rng)}, fields=("x",))


def labelled(problem: DigitsClassify, prior: Prior) -> Source:
    """The few images with labels."""
    return problem.source


@torch.no_grad()
def probe_error(net: nn.Module) -> float:
    """The held-out error of a linear probe of the last features, by ridge regression on all images and labels."""
    x, y, heldout_x, heldout_y = split()
    with evaluating(net):
        known, seen = (F.pad(_features(net, x).double(), (0, 1), value=1.0) for x in (x, heldout_x))
    gram = known.mT @ known + 1e-3 * len(known) * torch.eye(known.shape[1])
    probe = torch.linalg.solve(gram, known.mT @ F.one_hot(y).double())
    return ((seen @ probe).argmax(1) != heldout_y).double().mean().item()


def _features(net: nn.Module, x: Tensor) -> Tensor:
    with tap(net, "norm") as seen:
        net(x)
    return seen["norm"].mean(1)


@torch.no_grad()
def reach(net: nn.Module, x: Tensor) -> Tensor:
    """How many patches away each head of the second block looks, the mean over images and places, [heads]."""
    with evaluating(net), tap(net, *LOOKS[:2]) as seen:
        net(x)
    weights = relation(*(seen[name] for name in LOOKS[:2]), heads=HEADS).exp()
    side = torch.arange(round(weights.shape[-1] ** 0.5)).double()
    places = torch.cartesian_prod(side, side)
    return (weights * torch.cdist(places, places)).sum(-1).mean((0, 2))


def both(trial: Trial) -> float:
    """The greater of two ratios: in errors of probes to students without the supervised teacher, who follow the
    autoencoder or 50 labels, and in how far reach is from the autoencoder's to students without that one, by features,
    by KD or by labels.
    """
    x, known = trial.problem.heldout[0], reach(masked(trial.prior), trial.problem.heldout[0])
    labels, kd = by(CrossEntropy(), data=labelled), by(KD(alpha=1.0))
    by_labels, by_kd, by_features, by_attention = (
        retrained(trial, change) for change in (labels, kd, by(FEATURES), by(ATTENTION))
    )

    def gap(net: nn.Module) -> float:
        return (reach(net, x) - known).abs().mean().item()

    wrong = probe_error(trial.student) / min(map(probe_error, (by_attention, by_labels)))
    return max(wrong, gap(trial.student) / min(map(gap, (by_features, by_kd, by_labels))))


FEATURES = G2SD(pairs={"norm": "norm"})
ATTENTION = MiniLM(teacher="masked", pairs=tuple((name, name) for name in LOOKS), heads=HEADS)


def recipe(problem: DigitsViT, steps: int = 300, before: int = 400) -> Recipe:
    objective = FEATURES + 0.03 * ATTENTION
    small = {"batch": 64, "student": transformer(WIDTH), "teacher": teachers, "data": unlabelled}
    return Recipe(
        stages=(
            learner(
                "masked",
                Reconstruction(),
                steps=before,
                lr=3e-3,
                batch=64,
                student=autoencoder(2 * WIDTH),
                data=masked_images,
            ),
            learner("hybrid-distill", objective, steps=steps, lr=4e-3, **small),
        ),
        paper=Paper("2306.15876", "Shi et al. 2023"),
        claim=Claim(
            text="both of: held-out error of a linear probe ≤ 0.9 × the lesser of those by the masked autoencoder's "
            "attention alone and by 50 labels, and how far heads look as near the masked autoencoder's as 0.9 × the "
            "least by features alone, by KD and by 50 labels; mean of the greater ratio",
            check=both,
            bound=0.9,
            on="digits-vit",
            seeds=5,
            mean=True,
        ),
    )
