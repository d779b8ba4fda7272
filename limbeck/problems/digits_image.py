"""Images of digits optimised one by one under their class: what score distillation does to a single picture."""

from limbeck.problems.digits import Digits


class DigitsImage(Digits):
    """The teacher and judge of `Digits`, for students that are twenty images, two of each class.

    >>> DigitsImage().spread(20).bincount().tolist()
    [2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    """

    name = "digits-image"
    particles = 20
    shown = 20


def problem() -> DigitsImage:
    """The problem, as the command line makes it."""
    return DigitsImage()
