"""How good a student is, in figures."""

from limbeck.evaluate.comparison import evaluate, judge
from limbeck.evaluate.metrics import energy_distance, frechet, nearest_distance, precision_recall

__all__ = ["energy_distance", "evaluate", "frechet", "judge", "nearest_distance", "precision_recall"]
