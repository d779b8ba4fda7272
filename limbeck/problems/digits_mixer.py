"""Digits to classify with five labels a class: an MLP-Mixer teaches a convolutional network."""

from limbeck.problems.digits_classify import DigitsTransfer
from limbeck.problems.networks import Mixer


class DigitsMixer(DigitsTransfer):
    """An MLP-Mixer teaches; see `DigitsTransfer`.

    >>> problem = DigitsMixer()
    >>> problem.accuracy(problem.teacher) > 0.96
    True
    """

    name = "digits-mixer"

    @staticmethod
    def blank() -> Mixer:
        return Mixer(size=8, classes=10, width=48)


def problem() -> DigitsMixer:
    """The problem, as the command line makes it."""
    return DigitsMixer()


if __name__ == "__main__":  # trains the shipped network again
    DigitsMixer.ship()
