"""Layers of a network become sums of experts: each is distilled by itself, on what goes into the teacher's layer."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.engine.objective import Loss, Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Tick
from limbeck.errors import BadSetting, Incompatible, in_range
from limbeck.objectives.networks.features import one_each
from limbeck.objectives.networks.logits import Between, wide
from limbeck.students.experts import AdditiveExperts, mixed


@dataclass(frozen=True, kw_only=True)
class OnExperts(Between):
    """A loss of layers that are `AdditiveExperts`, beside the teacher's of the same names, all layers in parallel.

    Args: those of `Between`.
        layers: names of submodules of both.
    """

    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.layers:
            raise BadSetting(f"{type(self).__name__} needs names of layers, such as layers=('blocks.0.along',).")

    @abstractmethod
    def value(self, layer: AdditiveExperts, x: Tensor, out: Tensor, tick: Tick) -> Tensor:
        """The loss of one layer, of what goes into the teacher's and what comes out, [B, …, width] each."""

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        one_each(cast.tap(self.teacher, *self.layers, by=self), self.layers, by=self)
        cast.tap(self.teacher, *(f"{name}:in" for name in self.layers), by=self)
        net = cast.module(self.student)
        layers = {name: self._experts(net, name) for name in self.layers}

        def loss(tick: Tick) -> Loss:
            known = tick.answer(self.teacher).features
            with tick.seeded(self.name):
                parts = [self.value(layer, known[f"{k}:in"], known[k], tick) for k, layer in layers.items()]
            return Loss(torch.stack(parts).mean(0))

        return (Term(self.name, self.student, loss, coupled=self.coupled, of=self),)

    def _experts(self, net: torch.nn.Module, name: str) -> AdditiveExperts:
        layer = dict(net.named_modules()).get(name)
        if not isinstance(layer, AdditiveExperts):
            got = "none" if layer is None else type(layer).__name__
            need = f"a student whose {name!r} is AdditiveExperts"
            raise Incompatible(type(self).__name__, need=need, got=got)
        return layer


@dataclass(frozen=True, kw_only=True)
class ExpertSums(OnExperts):
    """Mean over k and numbers of (Σ_{i ≤ k} expert_i(x) − layer(x))²: every partial sum fits as well as it can.

    Args: those of `OnExperts`.

    Raises:
        BadSetting: no layers.
        Incompatible: no teacher or no such layers of it, other layers of the student, no inputs x.

    Source: Wójcik et al. 2023, arXiv 2312.10193.

    >>> from torch import nn
    >>> from limbeck import AdditiveExperts, Dataset, distill
    >>> student = nn.Sequential(AdditiveExperts(4, experts=2, hidden=3), nn.Linear(4, 3))
    >>> teacher, data = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), Dataset(x=torch.randn(9, 4))
    >>> sorted(next(iter(distill(teacher, student, ExpertSums(layers=("0",)), data, steps=1, batch=8))).losses)
    ['expertsums']
    """

    def value(self, layer: AdditiveExperts, x: Tensor, out: Tensor, tick: Tick) -> Tensor:
        return ((wide(layer.partial(x)) - wide(out)) ** 2).mean(0).flatten(1).mean(1)


@dataclass(frozen=True, kw_only=True)
class ExpertGates(OnExperts):
    """Mean (Σ_k choice_k·out_k(x) − layer(x))² / mean layer(x)² + λ·(u − budget)², u the mean share of experts in use.

    The choice is the gate's for each token, hard and with Gumbel noise; u is over all tokens of the batch, so that
    those that need more get more. Each layer keeps the budget by itself.

    Args: those of `OnExperts`.
        budget: share of experts to use.
        weight: λ.

    Raises:
        BadSetting: no layers, or a budget outside [0, 1].
        Incompatible: no teacher or no such layers of it, other layers of the student, no inputs x.

    Source: Wójcik et al. 2023, arXiv 2312.10193, with further terms for diverse choices there.

    >>> from torch import nn
    >>> from limbeck import AdditiveExperts, Dataset, distill
    >>> student = nn.Sequential(AdditiveExperts(4, experts=2, hidden=3), nn.Linear(4, 3))
    >>> teacher, data = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), Dataset(x=torch.randn(9, 4))
    >>> sorted(next(iter(distill(teacher, student, ExpertGates(layers=("0",)), data, steps=1, batch=8))).losses)
    ['expertgates']
    """

    coupled = True

    budget: float = 0.5
    weight: float = 30.0

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("budget", self.budget, 0, 1)
        in_range("weight", self.weight, 0)

    def value(self, layer: AdditiveExperts, x: Tensor, out: Tensor, tick: Tick) -> Tensor:
        choice = layer.choice(x)
        made, out = wide(mixed(layer.partial(x), choice)), wide(out)
        error = ((made - out) ** 2).mean() / (out**2).mean().clamp_min(1e-12)
        return error + self.weight * (layer.used(choice).mean() - self.budget) ** 2


__all__ = ["ExpertGates", "ExpertSums", "OnExperts"]
