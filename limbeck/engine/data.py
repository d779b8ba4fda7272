"""Where batches come from. A source is stateless: what it yields depends on its random numbers alone."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import BadSetting, Incompatible
from limbeck.rng import Rng
from limbeck.tree import Tree, tree_leaves, tree_map

Batch = dict[str, Tree]
"""Trees by field name: ``x`` samples, ``cond`` conditions, ``y`` labels, ``noise`` …; rows belong together."""


class Source(ABC):
    """Something that yields batches."""

    fields: frozenset[str]
    """The names that every batch has."""

    @abstractmethod
    def take(self, n: int, rng: Rng) -> Batch:
        """A batch of n rows; a source that needs no randomness of its own may ignore ``rng``."""

    def only(self, fields: Collection[str]) -> "Source":
        """For a run that asks for these fields: itself, or one without what is dear to make and nobody wants."""
        return self


class Dataset(Source):
    """Rows of tensors in memory, drawn uniformly with replacement.

    Args:
        fields: trees of tensors with the same number of rows, by field name.

    >>> import torch
    >>> data = Dataset(x=torch.arange(5.0), cond=torch.arange(5))
    >>> batch = data.take(3, Rng(0))
    >>> bool((batch["x"] == batch["cond"]).all())
    True
    """

    def __init__(self, **fields: Tree):
        sizes = {len(leaf) for leaf in tree_leaves(fields)}
        if len(sizes) != 1 or 0 in sizes:
            raise BadSetting(f"Dataset needs fields of one length above 0, got {sorted(sizes)}.")
        self.rows: Batch = fields
        self.fields = frozenset(fields)
        self.size = sizes.pop()

    def take(self, n: int, rng: Rng) -> Batch:
        index = rng.integers(n, self.size)
        return {
            name: tree_map(lambda x: x[index.to(x.device)].to(rng.device), tree) for name, tree in self.rows.items()
        }


class Drawn(Source):
    """Batches that a function makes: conditions for a data-free run, a teacher's samples, augmented views.

    Args:
        make: (n, rng) → batch.
        fields: the names that every batch has.

    >>> Drawn(lambda n, rng: {"cond": rng.integers(n, 10)}, fields=("cond",)).take(4, Rng(0))["cond"].shape
    torch.Size([4])
    """

    def __init__(self, make: Callable[[int, Rng], Batch], *, fields: tuple[str, ...]):
        self.make, self.fields = make, frozenset(fields)

    def take(self, n: int, rng: Rng) -> Batch:
        return self.make(n, rng)


class Mixed(Source):
    """Several sources side by side: each batch has the fields of all of them.

    Args:
        sources: with no field in common.

    >>> import torch
    >>> images, labels = Dataset(x=torch.zeros(3, 2)), Dataset(cond=torch.zeros(4))
    >>> sorted(Mixed(images, labels).take(5, Rng(0)))
    ['cond', 'x']
    """

    def __init__(self, *sources: Source):
        self.sources = sources
        self.fields = frozenset(name for source in sources for name in source.fields)
        if len(self.fields) != sum(len(source.fields) for source in sources):
            raise BadSetting("Mixed needs sources with no field in common.")

    def take(self, n: int, rng: Rng) -> Batch:
        return {name: tree for source in self.sources for name, tree in source.take(n, rng).items()}


class Mixup(Source):
    """Pairs of examples in any proportion, x = λ·a + (1 − λ)·b with λ uniform, and the same of their labels.

    Between two texts there is nothing: what has a label for each token stays as it is.

    Args:
        source: of x and of labels y, [B] integers.
        classes: C; labels become shares of all classes, y [B, C].

    Source: Zhang et al. 2017, arXiv 1710.09412, with α = 1; so heavy it is what students of Beyer et al. 2021, arXiv
    2106.05237, are shown for long.

    >>> import torch
    >>> batch = Mixup(Dataset(x=torch.eye(3), y=torch.arange(3)), classes=3).take(5, Rng(0))
    >>> bool(torch.allclose(batch["x"], batch["y"]))
    True
    """

    def __init__(self, source: Source, *, classes: int):
        self.source, self.classes, self.fields = source, classes, frozenset({"x", "y"})
        if missing := self.fields - source.fields:
            raise Incompatible("Mixup", need="a source of x and y", got=f"one without {' and '.join(sorted(missing))}")

    def take(self, n: int, rng: Rng) -> Batch:
        share, first = rng.uniform(n, dtype=torch.float32), self.source.take(n, rng)
        if first["y"].dim() > 1:
            return first
        sides = (first, self.source.take(n, rng))
        one, two = ({"x": side["x"], "y": F.one_hot(side["y"], self.classes)} for side in sides)
        return {name: _between(one[name], two[name], share) for name in ("x", "y")}


def _between(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    a, b = (x if x.is_floating_point() else x.float() for x in (a, b))
    w = share.to(a).view(-1, *[1] * (a.dim() - 1))
    return w * a + (1 - w) * b


def empty(n: int, rng: Rng) -> Batch:
    """The batch of a run without data."""
    return {}


def as_source(data: Source | Tensor | None) -> Source:
    """A source as it is, a tensor as samples x, None as batches without fields."""
    if data is None:
        return Drawn(empty, fields=())
    return Dataset(x=data) if isinstance(data, Tensor) else data


__all__ = ["Batch", "Dataset", "Drawn", "Mixed", "Mixup", "Source", "as_source"]
