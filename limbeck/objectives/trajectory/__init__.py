"""Objectives that compare points along the teacher's trajectories."""

from limbeck.objectives.trajectory.consistency import Consistency, pseudo_huber
from limbeck.objectives.trajectory.regression import Denoising, Regression

__all__ = ["Consistency", "Denoising", "Regression", "pseudo_huber"]
