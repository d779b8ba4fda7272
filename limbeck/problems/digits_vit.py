"""Digits to classify with five labels a class: a vision transformer teaches a convolutional network."""

from functools import cached_property

import torch
from torch import nn

from limbeck.problems.digits import ASSETS, jittered, split
from limbeck.problems.digits_classify import DigitsClassify, train_classifier
from limbeck.problems.networks import ConvNet, ViT
from limbeck.teachers import read_tensors


class DigitsViT(DigitsClassify):
    """A vision transformer that saw all 1 300 images teaches a network of three small convolutions on 50 of them.

    >>> problem = DigitsViT()
    >>> problem.accuracy(problem.teacher) > 0.96
    True
    """

    name = "digits-vit"

    @cached_property
    def teacher(self) -> nn.Module:
        teacher = blank_teacher()
        teacher.load_state_dict(read_tensors(ASSETS / "digits_vit.safetensors"))
        return teacher.requires_grad_(False).eval()

    def network(self) -> nn.Module:
        return ConvNet(classes=10)


def problem() -> DigitsViT:
    """The problem, as the command line makes it."""
    return DigitsViT()


def blank_teacher() -> ViT:
    """The teacher's network before training."""
    return ViT(size=8, classes=10, width=48)


def main() -> None:
    """Trains the shipped network again: ``python -m limbeck.problems.digits_vit``."""
    torch.set_num_threads(1)
    train_classifier("digits_vit", blank_teacher, jittered(*split()[:2]))


if __name__ == "__main__":
    main()
