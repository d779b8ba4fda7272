"""Slimmable networks: one set of weights, and a width for each pass."""

import copy
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import Incompatible, in_range

Layer = nn.Linear | nn.Conv2d
Shares = Tensor | Sequence[float]


class Elastic(nn.Module):
    """A network whose passes may be narrow: ``forward(x, shares)`` with a share of channels for each of its ``cuts``.

    Attributes:
        cuts: how many layers can be narrowed.
    """

    cuts: int

    def widths(self, share: float) -> Tensor:
        """The same share for every layer, [cuts]."""
        return torch.full((self.cuts,), share)

    def at(self, shares: Shares) -> "Narrow":
        """This network at one width, sharing its weights: what is judged, and measured in multiply-adds."""
        return Narrow(self, torch.as_tensor(shares))


class Narrow(nn.Module):
    """A slimmable network at one width.

    Args:
        net: whose weights these are.
        shares: of its channels, [cuts].
    """

    def __init__(self, net: Elastic, shares: Tensor):
        super().__init__()
        self.net, self.shares = net, shares

    def forward(self, x: Tensor) -> Tensor:
        """What the network puts out at this width."""
        return self.net(x, self.shares)


class Slimmable(Elastic):
    """A chain of layers each of which can keep its first channels alone, a share of them, rounded.

    Narrow networks lie in wide ones, weight by weight, so that where one learns the others change. Layers between are
    element by element, or flatten maps.

    Args:
        layers: linear layers, convolutions, and layers without parameters between them.
        ends: whether the last layer can be narrowed too; otherwise it puts out all that it has.

    Raises:
        Incompatible: layers with other parameters, such as norms, whose statistics differ from width to width.

    Source: Yu et al. 2018, arXiv 1812.08928, where each width has norms of its own; here are none.

    >>> net = Slimmable(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> net(torch.zeros(5, 4), net.widths(0.5)).shape, net.cuts
    (torch.Size([5, 3]), 1)
    >>> net.narrowed(net.widths(0.5))[0]
    Linear(in_features=4, out_features=4, bias=True)
    """

    def __init__(self, *layers: nn.Module, ends: bool = False):
        super().__init__()
        for layer in layers:
            plain = isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros"
            if not (plain or isinstance(layer, nn.Linear)) and (*layer.parameters(), *layer.buffers()):
                fit = "a chain of linear layers, convolutions and activations"
                raise Incompatible("Slimmable", need="layers that can be cut", got=repr(layer), fit=fit)
        self.layers = nn.ModuleList(layers)
        self.cuts = len(self.weighted) - (not ends)

    @property
    def weighted(self) -> list[Layer]:
        """Layers with weights, in order."""
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    def kept(self, shares: Shares | None) -> list[int]:
        """How many channels each layer with weights puts out, at least one.

        Raises:
            BadSetting: another number of shares than `cuts`, or shares outside [0, 1].
        """
        wide = [len(layer.weight) for layer in self.weighted]
        if shares is None:
            return wide
        given = [float(share) for share in shares]
        in_range("the number of shares of channels", len(given), self.cuts, self.cuts)
        for share in given:
            in_range("a share of channels", share, 0, 1)
        narrow = [max(1, round(share * n)) for share, n in zip(given, wide[: self.cuts], strict=True)]
        return narrow + wide[self.cuts :]

    def forward(self, x: Tensor, shares: Shares | None = None) -> Tensor:
        """What the last layer puts out, at shares [cuts] of the channels of each layer; None for all of them."""
        kept = iter(self.kept(shares))
        for layer in self.layers:
            x = _narrow(layer, x, next(kept)) if isinstance(layer, Layer) else layer(x)
        return x

    @torch.no_grad()
    def narrowed(self, shares: Shares) -> nn.Sequential:
        """The narrow network by itself, with weights of its own."""
        weighted, kept = self.weighted, self.kept(shares)
        inputs = [weighted[0].weight.shape[1]]
        for (one, two), k in zip(pairwise(weighted), kept[:-1], strict=True):
            inputs.append(two.weight.shape[1] // len(one.weight) * k)  # a flattened map has places of each channel
        made = {id(old): _cut_out(old, n, k) for old, n, k in zip(weighted, inputs, kept, strict=True)}
        return nn.Sequential(*(made.get(id(layer)) or copy.deepcopy(layer) for layer in self.layers))


class SlimmableTasks(Elastic):
    """A slimmable encoder that several slimmable decoders share; outputs of all tasks, one after the other.

    Shares are the encoder's, then each decoder's, so that a task gets more of the network than others.

    Args:
        encoder: with ``ends``, so that what decoders read can be narrow too.
        decoders: one for each task.

    Source: Aich et al. 2023, arXiv 2308.11744.

    >>> encoder = Slimmable(nn.Linear(4, 8), nn.ReLU(), ends=True)
    >>> decoders = [Slimmable(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, classes)) for classes in (3, 2)]
    >>> net = SlimmableTasks(encoder, decoders)
    >>> net(torch.zeros(5, 4), torch.tensor([0.5, 1.0, 0.5])).shape
    torch.Size([5, 5])
    """

    def __init__(self, encoder: Slimmable, decoders: Sequence[Slimmable]):
        super().__init__()
        self.encoder, self.decoders = encoder, nn.ModuleList(decoders)
        self.split = [encoder.cuts, *(decoder.cuts for decoder in decoders)]
        self.cuts = sum(self.split)

    def forward(self, x: Tensor, shares: Tensor | None = None) -> Tensor:
        """Outputs [B, ΣC], at shares [cuts] of the channels; None for all of them."""
        first, *rest = shares.split(self.split) if shares is not None else [None] * len(self.split)
        seen = self.encoder(x, first)
        return torch.cat([decoder(seen, part) for decoder, part in zip(self.decoders, rest, strict=True)], 1)


def _narrow(layer: Layer, x: Tensor, k: int) -> Tensor:
    weight, bias = layer.weight[:k, : x.shape[1]], layer.bias if layer.bias is None else layer.bias[:k]
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation)


def _cut_out(layer: Layer, inputs: int, outputs: int) -> nn.Module:
    made = copy.deepcopy(layer)
    made.weight = nn.Parameter(layer.weight[:outputs, :inputs].clone())
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias[:outputs].clone())
    if isinstance(made, nn.Linear):
        made.in_features, made.out_features = inputs, outputs
    else:
        made.in_channels, made.out_channels = inputs, outputs
    return made


__all__ = ["Elastic", "Narrow", "Slimmable", "SlimmableTasks"]
