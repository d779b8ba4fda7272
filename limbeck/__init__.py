"""Limbeck distils: teacher × student × objective × schedule, one loop, every published system a short recipe.

>>> import torch
>>> from limbeck import DMD, GaussianMixture, Particles, distill
>>> teacher = GaussianMixture(means=torch.tensor([[-2.0], [2.0]]), std=0.3)
>>> run = distill(teacher, Particles(torch.randn(64, 1)), DMD(), steps=5, batch=64)
>>> [step.i for step in run]
[1, 2, 3, 4, 5]
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from limbeck.diffusion import *  # noqa: F403
    from limbeck.engine import *  # noqa: F403
    from limbeck.errors import *  # noqa: F403
    from limbeck.objectives import *  # noqa: F403
    from limbeck.rng import Rng as Rng
    from limbeck.students import *  # noqa: F403
    from limbeck.teachers import *  # noqa: F403

_ROOMS = ("diffusion", "engine", "teachers", "students", "objectives", "errors", "rng")


def __getattr__(name: str) -> Any:
    """Public names load their room on first use, so that ``limbeck --help`` never imports torch."""
    if name == "__all__":
        return [public for room in _ROOMS for public in importlib.import_module(f"limbeck.{room}").__all__]
    if not name.startswith("_"):
        if importlib.util.find_spec(f"limbeck.{name}"):
            return importlib.import_module(f"limbeck.{name}")
        for room in _ROOMS:
            module = importlib.import_module(f"limbeck.{room}")
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module 'limbeck' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
