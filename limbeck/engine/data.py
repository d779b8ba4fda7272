"""Where batches come from. A source is stateless: what it yields depends on its random numbers alone."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from limbeck.errors import BadSetting
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


def empty(n: int, rng: Rng) -> Batch:
    """The batch of a run without data."""
    return {}


def as_source(data: Source | Tensor | None) -> Source:
    """A source as it is, a tensor as samples x, None as batches without fields."""
    if data is None:
        return Drawn(empty, fields=())
    return Dataset(x=data) if isinstance(data, Tensor) else data


__all__ = ["Batch", "Dataset", "Drawn", "Mixed", "Source", "as_source"]
