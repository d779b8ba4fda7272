"""What compares two networks that map inputs to outputs: their logits, their features, and relations of features."""

from limbeck.objectives.networks.across import Convolution, CrossAttention, Groupwise
from limbeck.objectives.networks.adversary import OutputGAN
from limbeck.objectives.networks.attention import AttentionTransfer, attention_map, attention_transfer
from limbeck.objectives.networks.attention_relations import MiniLM, attention_kl
from limbeck.objectives.networks.blockwise import StableKD
from limbeck.objectives.networks.branches import OFA, adaptive_target
from limbeck.objectives.networks.contrast import CRD, Contrast, cosines, info_nce, noise_contrast
from limbeck.objectives.networks.correspondence import (
    Correspondence,
    Matches,
    Matching,
    correspondence_loss,
    match_loss,
    similarity,
)
from limbeck.objectives.networks.crossing import PartialCrossAttention
from limbeck.objectives.networks.decoupled import DKD, rest_kl, target_kl
from limbeck.objectives.networks.exits import ExitContrast, both_ways
from limbeck.objectives.networks.experts import ExpertGates, ExpertSums, OnExperts
from limbeck.objectives.networks.features import FitNets, OnFeatures, mean_square
from limbeck.objectives.networks.generations import (
    ConfidenceWeighted,
    PermutedTeacher,
    confidence_weights,
    permuted,
)
from limbeck.objectives.networks.geometry import TrilateralKD, edges, fused
from limbeck.objectives.networks.logits import (
    KD,
    Between,
    CrossEntropy,
    JensenShannonKD,
    OnLogits,
    jensen_shannon,
    soft_kl,
)
from limbeck.objectives.networks.masked import DMAE, G2SD, Reconstruction, filled_in
from limbeck.objectives.networks.messages import Talk
from limbeck.objectives.networks.modes import MultiMode
from limbeck.objectives.networks.noised_views import NoisedViews
from limbeck.objectives.networks.online import (
    BalancedDivergence,
    Mutual,
    Online,
    balanced_kl,
    entropy,
    reverse_kl,
)
from limbeck.objectives.networks.orthogonal import VkD, whitened
from limbeck.objectives.networks.partition import PartitionedKD, knows_better, partitioned_kl
from limbeck.objectives.networks.perception import LumiNet, perceived
from limbeck.objectives.networks.projectors import Orthogonal, Projection, Projector, Same, Unchanged
from limbeck.objectives.networks.ranking import PLD, plackett_luce
from limbeck.objectives.networks.regeneration import MGD
from limbeck.objectives.networks.relations import CKA, RKD, Relational, angles, cka, relational, relative_distances
from limbeck.objectives.networks.restoration import BetterViews, Restoration, band, direction
from limbeck.objectives.networks.sample_similarity import (
    ClassSimilarity,
    SampleSimilarity,
    class_gradients,
    cosine_gram,
    gram_gap,
)
from limbeck.objectives.networks.selection import ReinforcedSelection, chosen_mean, loss_after, reinforce
from limbeck.objectives.networks.several import UNIC, cosine_and_smooth, heard, standardised
from limbeck.objectives.networks.token_relations import Relations, Tokens, relation, relation_kl
from limbeck.objectives.networks.tokens import UNLABELLED, PerToken, token_mean
from limbeck.objectives.networks.transport import SinKD, sinkhorn, sinkhorn_distance
from limbeck.objectives.networks.views import DualView, ThroughTeacher, alternating, direction_error
from limbeck.objectives.networks.widths import (
    AtWidths,
    InPlaceKD,
    WidthCrossEntropy,
    WidthInvariance,
    task_cross_entropy,
    turned,
)
from limbeck.objectives.networks.windows import MultiScaleContrast, windowed

__all__ = [
    "CKA",
    "CRD",
    "DKD",
    "DMAE",
    "G2SD",
    "KD",
    "MGD",
    "OFA",
    "PLD",
    "RKD",
    "UNIC",
    "UNLABELLED",
    "AtWidths",
    "AttentionTransfer",
    "BalancedDivergence",
    "BetterViews",
    "Between",
    "ClassSimilarity",
    "ConfidenceWeighted",
    "Contrast",
    "Convolution",
    "Correspondence",
    "CrossAttention",
    "CrossEntropy",
    "DualView",
    "ExitContrast",
    "ExpertGates",
    "ExpertSums",
    "FitNets",
    "Groupwise",
    "InPlaceKD",
    "JensenShannonKD",
    "LumiNet",
    "Matches",
    "Matching",
    "MiniLM",
    "MultiMode",
    "MultiScaleContrast",
    "Mutual",
    "NoisedViews",
    "OnExperts",
    "OnFeatures",
    "OnLogits",
    "Online",
    "Orthogonal",
    "OutputGAN",
    "PartialCrossAttention",
    "PartitionedKD",
    "PerToken",
    "PermutedTeacher",
    "Projection",
    "Projector",
    "Reconstruction",
    "ReinforcedSelection",
    "Relational",
    "Relations",
    "Restoration",
    "Same",
    "SampleSimilarity",
    "SinKD",
    "StableKD",
    "Talk",
    "ThroughTeacher",
    "Tokens",
    "TrilateralKD",
    "Unchanged",
    "VkD",
    "WidthCrossEntropy",
    "WidthInvariance",
    "adaptive_target",
    "alternating",
    "angles",
    "attention_kl",
    "attention_map",
    "attention_transfer",
    "balanced_kl",
    "band",
    "both_ways",
    "chosen_mean",
    "cka",
    "class_gradients",
    "confidence_weights",
    "correspondence_loss",
    "cosine_and_smooth",
    "cosine_gram",
    "cosines",
    "direction",
    "direction_error",
    "edges",
    "entropy",
    "filled_in",
    "fused",
    "gram_gap",
    "heard",
    "info_nce",
    "jensen_shannon",
    "knows_better",
    "loss_after",
    "match_loss",
    "mean_square",
    "noise_contrast",
    "partitioned_kl",
    "perceived",
    "permuted",
    "plackett_luce",
    "reinforce",
    "relation",
    "relation_kl",
    "relational",
    "relative_distances",
    "rest_kl",
    "reverse_kl",
    "similarity",
    "sinkhorn",
    "sinkhorn_distance",
    "soft_kl",
    "standardised",
    "target_kl",
    "task_cross_entropy",
    "token_mean",
    "turned",
    "whitened",
    "windowed",
]
