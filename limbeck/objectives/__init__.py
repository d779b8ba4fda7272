"""What compares student and teacher: pure per-example losses, and objectives made of them."""

from limbeck.objectives.adversarial import GAN
from limbeck.objectives.logits import KD, CrossEntropy, soft_kl
from limbeck.objectives.score import (
    DMD,
    SDS,
    VSD,
    Critic,
    Critical,
    SiD,
    along,
    denoising,
    distribution_matching,
    identity_score,
    score_difference,
)
from limbeck.objectives.trajectory import Consistency, Denoising, Regression, pseudo_huber

__all__ = [
    "DMD",
    "GAN",
    "KD",
    "SDS",
    "VSD",
    "Consistency",
    "Critic",
    "Critical",
    "CrossEntropy",
    "Denoising",
    "Regression",
    "SiD",
    "along",
    "denoising",
    "distribution_matching",
    "identity_score",
    "pseudo_huber",
    "score_difference",
    "soft_kl",
]
