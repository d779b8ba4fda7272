"""The errors a user can cause, each one sentence: what was needed, what came, what would fit."""


class LimbeckError(Exception):
    """Base of every error that Limbeck raises about its input."""


class Incompatible(LimbeckError):
    """Parts that do not fit each other, found before step 0.

    Args:
        who: the part that complains.
        need: what it needs.
        got: what came.
        fit: what would fit, if that is known.

    >>> print(Incompatible("GAN", need="real samples", got="no data", fit="data=Dataset(x=...)"))
    GAN needs real samples, got no data; data=Dataset(x=...) would fit.
    """

    def __init__(self, who: str, *, need: str, got: str, fit: str | None = None):
        super().__init__(f"{who} needs {need}, got {got}" + (f"; {fit} would fit." if fit else "."))


class BadSetting(LimbeckError, ValueError):
    """A setting that does not exist, has the wrong type, or is out of its range."""


class BadFile(LimbeckError):
    """A file that is missing, damaged, unsafe to read, or not what it claims to be."""


class Failed(LimbeckError):
    """A run that cannot go on although its input was good, such as on a full disk."""


class Diverged(Failed):
    """Ten updates in a row had a non-finite loss or gradient; the last good checkpoint is kept."""


def in_range(name: str, value: float, lo: float = float("-inf"), hi: float = float("inf")) -> None:
    """Raises `BadSetting` unless lo ≤ value ≤ hi.

    >>> in_range("steps", -1, 1)
    Traceback (most recent call last):
    limbeck.errors.BadSetting: steps must be at least 1, got -1.
    """
    if lo <= value <= hi:
        return
    bound = f"at least {lo:g}" if hi == float("inf") else f"between {lo:g} and {hi:g}"
    raise BadSetting(f"{name} must be {bound}, got {value:g}.")


def above_zero(name: str, value: float) -> None:
    """Raises `BadSetting` unless the value is above 0.

    >>> above_zero("temperature", 0)
    Traceback (most recent call last):
    limbeck.errors.BadSetting: temperature must be above 0, got 0.
    """
    if not value > 0:
        raise BadSetting(f"{name} must be above 0, got {value:g}.")


__all__ = ["BadFile", "BadSetting", "Diverged", "Failed", "Incompatible", "LimbeckError"]
