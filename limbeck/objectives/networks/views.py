"""Features compared in two views, with and without what places have in common, also behind the teacher's last stage."""

from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import functional as F

from limbeck.engine.taps import INPUT, first_tensor, submodules
from limbeck.engine.tick import Tick
from limbeck.errors import BadSetting, in_range
from limbeck.objectives.networks.across import CrossAttention, as_map
from limbeck.objectives.networks.features import OnFeatures
from limbeck.objectives.networks.projectors import Projector


def alternating(x: Tensor) -> Tensor:
    """A map without its zero frequency: a cosine transform of each channel, its first coefficient set to 0, and back.

    That takes each channel's mean over places off, and is computed so: a constant added to a channel is not known.

    Args:
        x: maps [B, C, H, W].

    Source: ScaleKD, Fan et al. 2024, arXiv 2411.06786.

    >>> import torch
    >>> alternating(torch.tensor([[[[1.0, 3.0]]]]))
    tensor([[[[-1.,  1.]]]])
    """
    return x - x.mean((2, 3), keepdim=True)


def direction_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over places of ‖s/‖s‖ − t/‖t‖‖², s and t the channels at a place, [B]; between 0 and 4.

    Args:
        student: maps [B, C, H, W].
        teacher: maps of the same shape; no gradient flows to them.

    Source: ScaleKD's released code, which sums over places.

    >>> import torch
    >>> direction_error(torch.ones(1, 2, 3, 3), -torch.ones(1, 2, 3, 3))
    tensor([4.0000])
    """
    s, t = F.normalize(student, dim=1), F.normalize(teacher.detach(), dim=1)
    return ((s - t) ** 2).sum(1).flatten(1).mean(1)


@dataclass(frozen=True, kw_only=True)
class DualView(OnFeatures):
    """`direction_error` of projected features and the teacher's, and a weighted one of both without zero frequency.

    The zero frequency outweighs all others in a transformer's last features; the second view does not see it.

    Args: those of `OnFeatures`.
        pairs: taps whose features are maps or squares of tokens.
        alternate: weight of the second view.

    Raises:
        BadSetting: no pairs, a negative weight.
        Incompatible: no such taps, tokens that are no square, no data with x.

    Source: ScaleKD, Fan et al. 2024, arXiv 2411.06786; its weights are 0.08 and 0.06 for sums over 7 × 7 places. One
    projector serves both views here; there each has its own.

    >>> import torch
    >>> from torch import nn
    >>> from limbeck import Dataset, distill
    >>> teacher = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(32, 3))
    >>> student = nn.Sequential(nn.Conv2d(1, 5, 1), nn.Flatten(), nn.Linear(80, 3))
    >>> objective, data = DualView(pairs={"0": "0"}), Dataset(x=torch.randn(9, 1, 4, 4))
    >>> sorted(next(iter(distill(teacher, student, objective, data, steps=1, batch=8))).losses)
    ['dualview']
    """

    projector: Projector = field(default_factory=CrossAttention)
    alternate: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("alternate", self.alternate, 0)

    def value(self, student: Tensor, teacher: Tensor, tick: Tick) -> Tensor:
        s, t = as_map(student), as_map(teacher)
        return direction_error(s, t) + self.alternate * direction_error(alternating(s), alternating(t))


@dataclass(frozen=True, kw_only=True)
class ThroughTeacher(DualView):
    """Teacher parameter perception: projected features pass the teacher's frozen stage, and `DualView` compares there.

    Gradients go through the stage to the projector and the student; the teacher gets none.

    Args: those of `DualView`.
        pairs: one tap of the student, and what goes into the teacher's stage, ``{"blocks.1": "blocks.2:in"}``.

    Raises:
        BadSetting: not one pair, or a tap of the teacher that is not the input of a stage.
        Incompatible: no such taps, tokens that are no square, no data with x.

    Source: ScaleKD, Fan et al. 2024, arXiv 2411.06786.

    >>> import torch
    >>> from torch import nn
    >>> from limbeck import Dataset, distill
    >>> teacher = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(32, 3))
    >>> student = nn.Sequential(nn.Conv2d(1, 5, 1), nn.Flatten(), nn.Linear(80, 3))
    >>> objective, data = ThroughTeacher(pairs={"0": "1:in"}), Dataset(x=torch.randn(9, 1, 4, 4))
    >>> sorted(next(iter(distill(teacher, student, objective, data, steps=1, batch=8))).losses)
    ['throughteacher']
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.pairs) != 1 or not self._entry.endswith(INPUT):
            got = ", ".join(f"{mine} → {theirs}" for mine, theirs in self.pairs)
            raise BadSetting(f"ThroughTeacher needs one pair that ends in a stage's input, 'blocks.2:in', got {got}.")

    @property
    def _entry(self) -> str:
        return next(iter(self.pairs))[1]

    def value(self, student: Tensor, teacher: Tensor, tick: Tick) -> Tensor:
        stage = submodules(tick.cast.module(self.teacher))[self._entry.removesuffix(INPUT)]
        ours, theirs = (first_tensor(stage(x)) for x in (student, teacher))
        return super().value(ours, theirs, tick)


__all__ = ["DualView", "ThroughTeacher", "alternating", "direction_error"]
