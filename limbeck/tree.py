"""Trees of tensors: a condition may be a label, a prompt embedding, a camera, or a dict or tuple of them."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Tree = Any
"""A tensor, ``None``, or a dict, list or tuple of trees; every tensor has the batch as its first axis."""


def tree_map(f: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """``f`` applied to every tensor of a tree; what is not a tensor stays.

    >>> import torch
    >>> tree_map(lambda x: x + 1, {"label": torch.tensor([1]), "camera": None})
    {'label': tensor([2]), 'camera': None}
    """
    if isinstance(tree, Tensor):
        return f(tree)
    if isinstance(tree, dict):
        return {key: tree_map(f, tree[key]) for key in tree}
    if isinstance(tree, list | tuple):
        return type(tree)(tree_map(f, item) for item in tree)
    return tree


def tree_leaves(tree: Tree) -> Iterator[Tensor]:
    """Every tensor of a tree, in order.

    >>> import torch
    >>> [x.shape[0] for x in tree_leaves((torch.zeros(3), {"b": torch.zeros(4)}))]
    [3, 4]
    """
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for key in tree:
            yield from tree_leaves(tree[key])
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from tree_leaves(item)


def moved(tree: Tree, device: torch.device) -> Tree:
    """Every tensor of a tree on a device."""
    return tree_map(lambda x: x.to(device), tree)


def rows(tree: Tree, index: slice | Tensor) -> Tree:
    """The chosen rows of every tensor of a tree."""
    return tree_map(lambda x: x[index], tree)
