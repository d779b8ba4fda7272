"""A model's folder and data as something to distil on, whatever kind it is."""

from pathlib import Path

from limbeck.bridges.images import Images
from limbeck.bridges.texts import Texts
from limbeck.bridges.transformers import kind_in


def on_model(folder: Path, *, data: str) -> Texts | Images:
    """The problem of a model of transformers: `Texts` for one of language, `Images` for a classifier.

    Args:
        folder: of the model.
        data: a text file, or labelled images.

    Raises:
        BadFile, Incompatible: see `Texts` and `Images`.
    """
    return Images(folder, data) if kind_in(folder) == "images" else Texts(folder, data)


__all__ = ["on_model"]
