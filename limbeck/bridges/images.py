"""An image classifier's folder and labelled images as something to distil on."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from limbeck.bridges.taught import Taught
from limbeck.bridges.transformers import read_processor
from limbeck.errors import BadFile, Incompatible
from limbeck.rng import Rng

HELDOUT = 500
"""At most so many images are held out, a fifth of them if they are fewer."""


class Images(Taught):
    """Labelled images under a classifier of transformers; a fifth of them is held out.

    Args:
        folder: of the model. Pictures are scaled and normalised as its preprocessor_config.json says; without one to
            the size that the model takes and to numbers from −1 to 1.
        data: a folder with a folder of PNG files for each class, named as the model's labels are or else in their
            order; or a .safetensors with inputs x [N, C, H, W] as the model takes them and labels y [N].

    Raises:
        BadFile: a folder that is no model, data that cannot be read or are too few.
        Incompatible: transformers is missing, classes or sizes that are not the model's.
    """

    def __init__(self, folder: str | Path, data: str | Path):
        super().__init__(folder, data)
        self.classes = int(self.config.num_labels)
        x, y = _tensors(self.data) if self.data.suffix == ".safetensors" else self._pictures()
        self._check(x, y)
        order = Rng(("images", "heldout")).uniform(len(y)).argsort()
        held = max(1, min(len(y) // 5, HELDOUT))
        self.heldout, self.train = (x[order[:held]], y[order[:held]]), (x[order[held:]], y[order[held:]])

    def _check(self, x: Tensor, y: Tensor) -> None:
        if len(y) < 2:
            raise BadFile(f"{self.data} must have two labelled images or more, got {len(y)}.")
        if int(y.min()) < 0 or int(y.max()) >= self.classes:
            got = f"labels from {int(y.min())} to {int(y.max())}"
            raise Incompatible(f"the model in {self.folder}", need=f"labels from 0 to {self.classes - 1}", got=got)
        channels, side = getattr(self.config, "num_channels", None), getattr(self.config, "image_size", None)
        size = (side, side) if isinstance(side, int) else tuple(side) if side else x.shape[2:]
        if x.dim() != 4 or x.shape[1:] != (wanted := (channels or x.shape[1], *size)):
            got = " × ".join(map(str, x.shape[1:]))
            need = f"inputs of {' × '.join(map(str, wanted))} numbers" if x.dim() == 4 else "inputs x [N, C, H, W]"
            raise Incompatible(f"the model in {self.folder}", need=need, got=got)

    def _pictures(self) -> tuple[Tensor, Tensor]:
        """Inputs and labels of a folder of class folders."""
        classes = sorted(path for path in self.data.glob("*") if path.is_dir()) if self.data.is_dir() else []
        if not classes:
            raise BadFile(
                f"{self.data} is neither a .safetensors nor a folder with a folder of PNG files for each class."
            )
        known = {str(label): int(i) for label, i in (self.config.label2id or {}).items()}
        if all(path.name in known for path in classes):
            labels = [known[path.name] for path in classes]
        elif len(classes) == self.classes:
            labels = [*range(self.classes)]
        else:
            need, got = f"folders of {self.classes} classes", ", ".join(path.name for path in classes[:5])
            raise Incompatible(f"the model in {self.folder}", need=need, got=f"{len(classes)}, {got}")
        files = [(file, i) for path, i in zip(classes, labels, strict=True) for file in sorted(path.glob("*.png"))]
        if not files:
            raise BadFile(f"{self.data} has class folders without a PNG file.")
        look = read_processor(self.folder) or self._plain
        x = torch.cat([look(_picture(file, self.config)) for file, _ in files])
        return x, torch.tensor([i for _, i in files])

    def _plain(self, picture: Any) -> Tensor:
        side = self.config.image_size
        height, width = (side, side) if isinstance(side, int) else side
        x = torch.tensor(np.asarray(picture.resize((width, height))), dtype=torch.float32)
        return x.view(1, height, width, -1).movedim(3, 1) / 127.5 - 1


def _picture(path: Path, config: Any) -> Any:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("L" if getattr(config, "num_channels", 3) == 1 else "RGB")
    except (OSError, ValueError) as error:
        raise BadFile(f"{path} is no picture that can be read: {error}.") from error


def _tensors(path: Path) -> tuple[Tensor, Tensor]:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BadFile(f"{path} is no .safetensors that can be read: {error}.") from error
    x, y = tensors.get("x"), tensors.get("y")
    if x is None or y is None or len(x) != len(y) or y.dim() != 1 or y.is_floating_point():
        got = ", ".join(f"{name} {list(value.shape)}" for name, value in tensors.items()) or "nothing"
        raise BadFile(f"{path} must hold inputs x [N, C, H, W] and labels y [N], got {got}.")
    return x.float(), y.long()


__all__ = ["Images"]
