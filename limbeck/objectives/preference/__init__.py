"""Objectives that follow a preference: rewards that are climbed, and pairs that are ranked."""

from limbeck.objectives.preference.dpo import DistillationDPO
from limbeck.objectives.preference.measured import Measured
from limbeck.objectives.preference.pairs import PSO, pair_margin, transition_ratio
from limbeck.objectives.preference.reward import Reward, ascent
from limbeck.objectives.preference.rewards import Direction, Nearness, Preference, Region

__all__ = [
    "PSO",
    "Direction",
    "DistillationDPO",
    "Measured",
    "Nearness",
    "Preference",
    "Region",
    "Reward",
    "ascent",
    "pair_margin",
    "transition_ratio",
]
