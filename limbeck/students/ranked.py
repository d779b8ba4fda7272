"""Structured pruning: the channels of a slimmable network in the order of what they are worth."""

import copy
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import in_range
from limbeck.students.slimmable import Layer, Slimmable


@torch.no_grad()
def ranked(net: Slimmable, scores: Sequence[Tensor]) -> Slimmable:
    """A copy that computes the same, its channels in falling order of a score: narrow passes keep the best.

    Args:
        net: whose last layer keeps its order.
        scores: of the channels of each layer but the last, [C] each.

    Raises:
        BadSetting: another number of scores.

    >>> from torch import nn
    >>> net = Slimmable(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> bool((ranked(net, [torch.arange(8.0)]).weighted[0].weight == net.weighted[0].weight.flip(0)).all())
    True
    """
    made = copy.deepcopy(net)
    in_range("the number of layers with scores", len(scores), hidden := len(made.weighted) - 1, hidden)
    for (one, two), score in zip(pairwise(made.weighted), scores, strict=True):
        order = score.argsort(descending=True, stable=True)
        one.weight.copy_(one.weight[order])
        if one.bias is not None:
            one.bias.copy_(one.bias[order])
        places = two.weight.unflatten(1, (len(order), -1))
        two.weight.copy_(places[:, order].flatten(1, 2))
    return made


def taylor_scores(net: Slimmable, x: Tensor, y: Tensor) -> list[Tensor]:
    """Σ over examples of |Σ a·∂L/∂a| of a channel's activations a, over places: what L changes by without it, about.

    Args:
        net: its layers but the last are scored, by what they put out.
        x: inputs, [B, …].
        y: labels, [B]; L is the cross-entropy of an example.

    Returns:
        [C] for each layer.

    Source: Molchanov et al. 2016, arXiv 1611.06440.

    >>> from torch import nn
    >>> net = Slimmable(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> [score.shape for score in taylor_scores(net, torch.zeros(5, 4), torch.arange(5) % 3)]
    [torch.Size([8])]
    """
    seen = list[Tensor]()
    for layer in net.layers:
        x = layer(x)
        if isinstance(layer, Layer):
            x = x if x.requires_grad else x.requires_grad_()
            seen.append(x)
    grads = torch.autograd.grad(F.cross_entropy(x, y, reduction="sum"), seen[:-1])
    moved = ((a * g).detach() for a, g in zip(seen[:-1], grads, strict=True))
    return [part.reshape(*part.shape[:2], -1).sum(2).abs().sum(0) for part in moved]


__all__ = ["ranked", "taylor_scores"]
