"""Masked generative distillation: from a part of the student's features a small network makes all of the teacher's."""

from dataclasses import dataclass, field
from typing import Literal

from torch import Size, Tensor, nn

from limbeck.engine.objective import Loss, Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Tick
from limbeck.errors import BadSetting, in_range
from limbeck.objectives.networks.features import OnFeatures, one_each
from limbeck.objectives.networks.logits import wide
from limbeck.objectives.networks.projectors import Projection, Projector, resized


def kept(scores: Tensor, *, ratio: float) -> Tensor:
    """1 where a score is at least the ratio, else 0, shape of the scores.

    Args:
        scores: uniform in [0, 1).
        ratio: share that is hidden.

    >>> import torch
    >>> kept(torch.tensor([0.2, 0.8]), ratio=0.5)
    tensor([0., 1.])
    """
    return (scores >= ratio).to(scores)


class Generator(nn.Module):
    """Two 3 × 3 convolutions with ReLU between them, on maps of so many channels.

    Args:
        channels: of the maps.
    """

    def __init__(self, channels: int):
        super().__init__()
        convs = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.net = nn.Sequential(next(convs), nn.ReLU(), next(convs))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, H, W]."""
        return self.net(x)


def as_map(x: Tensor) -> Tensor:
    """Features as maps [B, C, H, W]: tokens row by row, a vector as one place.

    >>> import torch
    >>> as_map(torch.ones(2, 9, 5)).shape, as_map(torch.ones(2, 5)).shape
    (torch.Size([2, 5, 3, 3]), torch.Size([2, 5, 1, 1]))
    """
    if x.dim() == 3:
        side = round(x.shape[1] ** 0.5)
        return resized(x, Size((len(x), x.shape[2], side, side)))
    return x if x.dim() == 4 else x[:, :, None, None]


@dataclass(frozen=True, kw_only=True)
class MGD(OnFeatures):
    """Σ (G(m ∘ P·s) − t)² over all numbers of an example: G makes the teacher's features of those that m leaves.

    A student that only copied would be of little use where most is hidden: each part of its features has to say
    something about the rest.

    Args: those of `OnFeatures`.
        ratio: share that is hidden, anew for each example.
        over: what is hidden: places, for dense tasks, or channels, for classification.

    Raises:
        BadSetting: no pairs, a ratio outside [0, 1], anything else than places or channels.
        Incompatible: no such taps, no data with x.

    Source: Yang et al. 2022, arXiv 2205.01529; weights there are 2e-5 with places and 7e-5 with channels, for
    large maps, beside the loss of the task.

    >>> import torch
    >>> from limbeck import Dataset, distill
    >>> from limbeck.problems.networks import ConvNet
    >>> teacher, student = ConvNet(classes=3, widths=(8, 16)), ConvNet(classes=3, widths=(4, 8))
    >>> data = Dataset(x=torch.randn(9, 1, 8, 8))
    >>> run = distill(teacher, student, MGD(pairs={"blocks.1": "blocks.1"}), data, steps=1, batch=8)
    >>> sorted(next(iter(run)).losses)
    ['mgd']
    """

    projector: Projector = field(default_factory=Projection)
    ratio: float = 0.65
    over: Literal["places", "channels"] = "places"

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("ratio", self.ratio, 0, 1)
        if self.over not in ("places", "channels"):
            raise BadSetting(f"MGD hides 'places' or 'channels', got {self.over!r}.")

    def value(self, student: Tensor, teacher: Tensor, tick: Tick) -> Tensor:
        """Σ (s − t)² of what was made and the teacher's features, [B]."""
        return (student - teacher).square().flatten(1).sum(1)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        mine, theirs = zip(*self.pairs, strict=True)
        for who, taps in ((self.student, mine), (self.teacher, theirs)):
            one_each(cast.tap(who, *taps, by=self), taps, by=self)
        role = f"{self.name} generator {', '.join(' → '.join(pair) for pair in self.pairs)}"
        modules = cast.role(role, lambda: self._built(cast), spec=self).module
        assert isinstance(modules, nn.ModuleList)
        half = len(self.pairs)
        align, generate = [*modules][:half], [*modules][half:]

        def loss(tick: Tick) -> Loss:
            seen, known = (tick.answer(who).features for who in (self.student, self.teacher))
            parts = list[Tensor]()
            for k, (s, t) in enumerate(self.pairs):
                maps = as_map(align[k](seen[s]))
                made = generate[k](maps * self._mask(maps, tick, k))
                parts.append(self.value(wide(made), wide(as_map(known[t])), tick))
            return Loss(sum(parts[1:], parts[0]))

        return (Term(self.name, (self.student, role), loss, of=self),)

    def _mask(self, x: Tensor, tick: Tick, k: int) -> Tensor:
        shape = (1, *x.shape[2:]) if self.over == "places" else (x.shape[1], 1, 1)
        return kept(tick.rng((self, "mask", k)).uniform(len(x), *shape), ratio=self.ratio).to(x)

    def _built(self, cast: Cast) -> nn.ModuleList:
        """The projectors of all pairs, and then their generators."""
        known = cast.dry(self.teacher).features
        made = [Generator(as_map(known[theirs]).shape[1]) for _, theirs in self.pairs]
        return nn.ModuleList([*super()._built(cast), *made]).to(next(cast.module(self.student).parameters()))


__all__ = ["MGD", "Generator", "as_map", "kept"]
