"""Objectives that compare scores."""

from limbeck.objectives.score.critic import Critic, Critical, denoising
from limbeck.objectives.score.distillation import SDS, VSD, along, score_difference
from limbeck.objectives.score.matching import DMD, SiD, distribution_matching, identity_score

__all__ = [
    "DMD",
    "SDS",
    "VSD",
    "Critic",
    "Critical",
    "SiD",
    "along",
    "denoising",
    "distribution_matching",
    "identity_score",
    "score_difference",
]
