"""What compares student and teacher: pure per-example losses, and objectives made of them."""

from limbeck.objectives import networks, preference, score
from limbeck.objectives.adversarial import GAN
from limbeck.objectives.adversary import R1, AdversarialLoss, ApproximateR1, Hinge, NonSaturating, Penalty
from limbeck.objectives.conditional import PairGAN, StepGAN, StepRegression
from limbeck.objectives.networks import *  # noqa: F403
from limbeck.objectives.preference import *  # noqa: F403
from limbeck.objectives.score import *  # noqa: F403
from limbeck.objectives.trajectory import Consistency, Denoising, Regression, pseudo_huber

__all__ = [
    "GAN",
    "R1",
    "AdversarialLoss",
    "ApproximateR1",
    "Consistency",
    "Denoising",
    "Hinge",
    "NonSaturating",
    "PairGAN",
    "Penalty",
    "Regression",
    "StepGAN",
    "StepRegression",
    "pseudo_huber",
]
__all__ += networks.__all__
__all__ += preference.__all__
__all__ += score.__all__
