"""Attention transfer: where a network is active says where it looks, whatever its channels mean."""

from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import functional as F

from limbeck.engine.tick import Tick
from limbeck.errors import Incompatible, above_zero
from limbeck.objectives.networks.features import OnFeatures
from limbeck.objectives.networks.projectors import Projector, Unchanged, resized


def attention_map(x: Tensor, *, power: float = 2.0) -> Tensor:
    """a/‖a‖₂ with a_u = mean_c |x_cu|^p at each place u: where the features are active, [B, places].

    Args:
        x: features, [B, C, H, W] or tokens [B, N, C]; a vector [B, D] is a row of D places with one channel.
        power: p.

    >>> import torch
    >>> attention_map(torch.tensor([[[[3.0, 0.0]], [[0.0, 4.0]]]]), power=1.0)
    tensor([[0.6000, 0.8000]])
    """
    size = x.abs() ** power
    active = size.flatten(2).mean(1) if x.dim() == 4 else size.mean(2) if x.dim() == 3 else size
    return F.normalize(active, dim=1)


def attention_transfer(student: Tensor, teacher: Tensor, *, power: float = 2.0) -> Tensor:
    """‖a_s − a_t‖² of the two maps of attention, [B]: 2 − 2·cos of the angle between them.

    Args:
        student: features, see `attention_map`; maps and tokens are brought to the teacher's places first.
        teacher: features of any number of channels.
        power: of activations.

    Raises:
        Incompatible: vectors of other lengths.

    Source: Zagoruyko & Komodakis 2016, arXiv 1612.03928; the square, as in the released code, which also divides by
    the number of places.

    >>> import torch
    >>> attention_transfer(torch.ones(2, 8, 4, 4), torch.ones(2, 16, 2, 2))
    tensor([0., 0.])
    """
    if student.dim() == 2 or teacher.dim() == 2:
        if student.shape != teacher.shape:
            need, got = f"features at places, or vectors of {teacher[0].numel()} numbers", f"{list(student.shape)}"
            raise Incompatible("AttentionTransfer", need=need, got=got, fit="a tap before the mean over places")
        places = student
    else:
        places = resized(student, teacher.shape)
    one, two = (attention_map(x, power=power) for x in (places, teacher))
    return (one - two).square().sum(1)


@dataclass(frozen=True, kw_only=True)
class AttentionTransfer(OnFeatures):
    """`attention_transfer` at each pair of taps: no projector, for channels are averaged away.

    Args: those of `OnFeatures`.
        power: p of activations.

    Raises:
        BadSetting: no pairs, a power that is not above 0.
        Incompatible: no such taps, no data with x.

    Source: Zagoruyko & Komodakis 2016, arXiv 1612.03928; the authors add it to cross-entropy.

    >>> import torch
    >>> from torch import nn
    >>> from limbeck import Dataset, distill
    >>> from limbeck.problems.networks import ConvNet
    >>> teacher, student = ConvNet(classes=3, widths=(8, 16)), ConvNet(classes=3, widths=(4, 8))
    >>> data = Dataset(x=torch.randn(9, 1, 8, 8))
    >>> run = distill(teacher, student, AttentionTransfer(pairs={"blocks.1": "blocks.1"}), data, steps=1, batch=8)
    >>> sorted(next(iter(run)).losses)
    ['attentiontransfer']
    """

    projector: Projector = field(default_factory=Unchanged)
    power: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero("power", self.power)

    def value(self, student: Tensor, teacher: Tensor, tick: Tick) -> Tensor:
        return attention_transfer(student, teacher, power=self.power)


__all__ = ["AttentionTransfer", "attention_map", "attention_transfer"]
