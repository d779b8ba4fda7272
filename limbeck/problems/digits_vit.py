"""Digits to classify with five labels a class: a vision transformer teaches a convolutional network."""

from limbeck.problems.digits_classify import DigitsTransfer
from limbeck.problems.networks import ViT


class DigitsViT(DigitsTransfer):
    """A vision transformer teaches; see `DigitsTransfer`.

    >>> problem = DigitsViT()
    >>> problem.accuracy(problem.teacher) > 0.96
    True
    """

    name = "digits-vit"

    @staticmethod
    def blank() -> ViT:
        return ViT(size=8, classes=10, width=48)


def problem() -> DigitsViT:
    """The problem, as the command line makes it."""
    return DigitsViT()


if __name__ == "__main__":  # trains the shipped network again
    DigitsViT.ship()
