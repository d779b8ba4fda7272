"""What compares two networks that map inputs to outputs: their logits, their features, and relations of features."""

from limbeck.objectives.networks.branches import OFA, adaptive_target
from limbeck.objectives.networks.decoupled import DKD, rest_kl, target_kl
from limbeck.objectives.networks.features import FitNets, OnFeatures, mean_square
from limbeck.objectives.networks.generations import (
    ConfidenceWeighted,
    PermutedTeacher,
    confidence_weights,
    permuted,
)
from limbeck.objectives.networks.logits import (
    KD,
    Between,
    CrossEntropy,
    JensenShannonKD,
    OnLogits,
    jensen_shannon,
    soft_kl,
)
from limbeck.objectives.networks.online import (
    BalancedDivergence,
    Mutual,
    Online,
    balanced_kl,
    entropy,
    reverse_kl,
)
from limbeck.objectives.networks.perception import LumiNet, perceived
from limbeck.objectives.networks.projectors import Orthogonal, Projection, Projector, Same, Unchanged
from limbeck.objectives.networks.ranking import PLD, plackett_luce
from limbeck.objectives.networks.transport import SinKD, sinkhorn, sinkhorn_distance

__all__ = [
    "DKD",
    "KD",
    "OFA",
    "PLD",
    "BalancedDivergence",
    "Between",
    "ConfidenceWeighted",
    "CrossEntropy",
    "FitNets",
    "JensenShannonKD",
    "LumiNet",
    "Mutual",
    "OnFeatures",
    "OnLogits",
    "Online",
    "Orthogonal",
    "PermutedTeacher",
    "Projection",
    "Projector",
    "Same",
    "SinKD",
    "Unchanged",
    "adaptive_target",
    "balanced_kl",
    "confidence_weights",
    "entropy",
    "jensen_shannon",
    "mean_square",
    "perceived",
    "permuted",
    "plackett_luce",
    "rest_kl",
    "reverse_kl",
    "sinkhorn",
    "sinkhorn_distance",
    "soft_kl",
    "target_kl",
]
