"""Objectives that compare scores."""

from limbeck.objectives.score.adapted import Adapted
from limbeck.objectives.score.asynchronous import ASD, Shifted
from limbeck.objectives.score.backtrack import Backtrack, CriticOf
from limbeck.objectives.score.balanced import BalancedScoreDistillation, shortest
from limbeck.objectives.score.consistent import CDS, Stepped
from limbeck.objectives.score.critic import Critic, Critical, denoising
from limbeck.objectives.score.distillation import CSD, SDS, VSD, ScoreDistillation, along
from limbeck.objectives.score.divergence import (
    ByRatio,
    Divergence,
    FDistill,
    ForwardKL,
    Jeffreys,
    JensenShannon,
    ReverseKL,
    Softened,
    SquaredHellinger,
)
from limbeck.objectives.score.domain import DomainScoreDistillation
from limbeck.objectives.score.editing import DDS, PDS, Posterior, Sourced
from limbeck.objectives.score.em import EMD, Corrected
from limbeck.objectives.score.entropic import ESD
from limbeck.objectives.score.flow import CFD, EulerRate
from limbeck.objectives.score.hifa import HiFA, RootAnnealed
from limbeck.objectives.score.implicit import (
    L2,
    SIM,
    Distance,
    PseudoHuber,
    UniInstruct,
    expanded,
    implicit_matching,
)
from limbeck.objectives.score.interval import ISM, TSM, Midway
from limbeck.objectives.score.mapping import LightMap, Mapped, VariationalDistributionMapping
from limbeck.objectives.score.matching import DMD, SiD, identity_score
from limbeck.objectives.score.negative import NFSD, SDSBridge
from limbeck.objectives.score.noise import Attached, Fresh, Inverted, Noise
from limbeck.objectives.score.parts import (
    Added,
    Fake,
    Gated,
    Gradient,
    Part,
    PerSample,
    PixelClip,
    Shape,
    Teacher,
    Weight,
    Zero,
)
from limbeck.objectives.score.path import TDM, Huber, Onward, PhasedDMD, Segment, importance, onward
from limbeck.objectives.score.ratio import DiffRatio, LogRatio
from limbeck.objectives.score.redenoised import Redenoised
from limbeck.objectives.score.reparametrised import SDI
from limbeck.objectives.score.stable import StableScoreDistillation
from limbeck.objectives.score.teacher import TeacherDenoising

__all__ = [
    "ASD",
    "CDS",
    "CFD",
    "CSD",
    "DDS",
    "DMD",
    "EMD",
    "ESD",
    "ISM",
    "L2",
    "NFSD",
    "PDS",
    "SDI",
    "SDS",
    "SIM",
    "TDM",
    "TSM",
    "VSD",
    "Adapted",
    "Added",
    "Attached",
    "Backtrack",
    "BalancedScoreDistillation",
    "ByRatio",
    "Corrected",
    "Critic",
    "CriticOf",
    "Critical",
    "DiffRatio",
    "Distance",
    "Divergence",
    "DomainScoreDistillation",
    "EulerRate",
    "FDistill",
    "Fake",
    "ForwardKL",
    "Fresh",
    "Gated",
    "Gradient",
    "HiFA",
    "Huber",
    "Inverted",
    "Jeffreys",
    "JensenShannon",
    "LightMap",
    "LogRatio",
    "Mapped",
    "Midway",
    "Noise",
    "Onward",
    "Part",
    "PerSample",
    "PhasedDMD",
    "PixelClip",
    "Posterior",
    "PseudoHuber",
    "Redenoised",
    "ReverseKL",
    "RootAnnealed",
    "SDSBridge",
    "ScoreDistillation",
    "Segment",
    "Shape",
    "Shifted",
    "SiD",
    "Softened",
    "Sourced",
    "SquaredHellinger",
    "StableScoreDistillation",
    "Stepped",
    "Teacher",
    "TeacherDenoising",
    "UniInstruct",
    "VariationalDistributionMapping",
    "Weight",
    "Zero",
    "along",
    "denoising",
    "expanded",
    "identity_score",
    "implicit_matching",
    "importance",
    "onward",
    "shortest",
]
