"""What problems on a model of transformers have in common: it teaches, and a smaller one of its family learns."""

from pathlib import Path
from typing import Any

from torch import nn

from limbeck.bridges.smaller import Smaller
from limbeck.bridges.transformers import read_model
from limbeck.problems.problem import Classification


class Taught(Classification):
    """A model's folder and something to judge it on.

    Args:
        folder: of the model.
        data: a file or folder.
    """

    device = "cuda"
    student = Smaller()

    def __init__(self, folder: str | Path, data: str | Path):
        self.folder, self.name, self.data = Path(folder), Path(folder).resolve().name, Path(data)
        self._teacher = read_model(folder)

    @property
    def teacher(self) -> nn.Module:
        return self._teacher

    @property
    def config(self) -> Any:
        """The teacher's configuration."""
        return self._teacher.config

    def network(self) -> nn.Module:
        return Smaller()(self)


__all__ = ["Taught"]
