"""What knows: exact teachers, trained networks."""

from limbeck.teachers.committee import Committee, task_similarity, task_weights
from limbeck.teachers.dataset import ExactDataset
from limbeck.teachers.ensemble import Ensemble
from limbeck.teachers.lora import low_rank, merged
from limbeck.teachers.mixture import GaussianMixture
from limbeck.teachers.subclasses import Subclasses, class_directions, marginal
from limbeck.teachers.trained import Trained, denoising_weight, read_tensors

__all__ = ["Ensemble", "ExactDataset", "GaussianMixture", "Trained", "denoising_weight", "low_rank", "read_tensors"]
__all__ = [
    "Committee",
    "ExactDataset",
    "GaussianMixture",
    "Subclasses",
    "Trained",
    "class_directions",
    "denoising_weight",
    "low_rank",
    "marginal",
    "merged",
    "read_tensors",
    "task_similarity",
    "task_weights",
]
