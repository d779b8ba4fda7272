"""How good a student is, in figures."""

from limbeck.evaluate.comparison import evaluate, judge
from limbeck.evaluate.metrics import (
    density_coverage,
    diversity,
    energy_distance,
    frechet,
    maximum_mean_discrepancy,
    mode_entropy,
    nearest_distance,
    prdc,
    precision_recall,
    sliced_wasserstein,
    vendi,
)

__all__ = [
    "density_coverage",
    "diversity",
    "energy_distance",
    "evaluate",
    "frechet",
    "judge",
    "maximum_mean_discrepancy",
    "mode_entropy",
    "nearest_distance",
    "prdc",
    "precision_recall",
    "sliced_wasserstein",
    "vendi",
]
