"""Digits to classify with five labels a class: an MLP-Mixer teaches a convolutional network."""

from functools import cached_property

import torch
from torch import nn

from limbeck.problems.digits import ASSETS, jittered, split
from limbeck.problems.digits_classify import DigitsClassify, train_classifier
from limbeck.problems.networks import ConvNet, Mixer
from limbeck.teachers import read_tensors


class DigitsMixer(DigitsClassify):
    """An MLP-Mixer that saw all 1 300 images teaches a network of three small convolutions on 50 of them.

    >>> problem = DigitsMixer()
    >>> problem.accuracy(problem.teacher) > 0.96
    True
    """

    name = "digits-mixer"

    @cached_property
    def teacher(self) -> nn.Module:
        teacher = blank_teacher()
        teacher.load_state_dict(read_tensors(ASSETS / "digits_mixer.safetensors"))
        return teacher.requires_grad_(False).eval()

    def network(self) -> nn.Module:
        return ConvNet(classes=10)


def problem() -> DigitsMixer:
    """The problem, as the command line makes it."""
    return DigitsMixer()


def blank_teacher() -> Mixer:
    """The teacher's network before training."""
    return Mixer(size=8, classes=10, width=48)


def main() -> None:
    """Trains the shipped network again: ``python -m limbeck.problems.digits_mixer``."""
    torch.set_num_threads(1)
    train_classifier("digits_mixer", blank_teacher, jittered(*split()[:2]))


if __name__ == "__main__":
    main()
