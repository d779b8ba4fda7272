"""Masked autoencoders as teachers: what is hidden is filled in, and features of what is seen, or of all, agree."""

from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import functional as F

from limbeck.engine.objective import Loss, Objective, Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Tick
from limbeck.errors import Incompatible
from limbeck.objectives.networks.features import OnFeatures
from limbeck.objectives.networks.logits import logits
from limbeck.objectives.networks.projectors import Projection, Projector


def filled_in(out: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """Σ_n h_n·mean (x̂_n − x_n)²/Σ_n h_n: the error where patches are hidden, [B]; 0 where none is.

    Args:
        out: x̂, [B, N, P], or [B, N] where P is 1.
        target: x, of the same shape.
        hidden: h, 1 or 0, [B, N].

    Source: MAE, He et al. 2021, arXiv 2111.06377.

    >>> import torch
    >>> filled_in(torch.zeros(1, 2, 1), torch.tensor([[[1.0], [2.0]]]), torch.tensor([[0.0, 1.0]]))
    tensor([4.])
    """
    each = (out - target).square().reshape(*hidden.shape, -1).mean(2)
    return (each * hidden).sum(1) / hidden.sum(1).clamp_min(1)


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Objective):
    """`filled_in` of a student that is shown a part and puts out all of it.

    Args:
        student: the name of who learns.

    Raises:
        Incompatible: no student that maps inputs to outputs, no data with x, target and hidden, outputs that are
            not of the target's shape.

    Source: He et al. 2021, arXiv 2111.06377.

    >>> import torch
    >>> from limbeck import Dataset, distill
    >>> from limbeck.problems.masked import MaskedAutoencoder, MaskedPatches
    >>> from limbeck.problems.networks import ViT
    >>> data = MaskedPatches(Dataset(x=torch.randn(9, 1, 8, 8)))
    >>> student = MaskedAutoencoder(ViT(size=8, classes=10, blocks=1))
    >>> sorted(next(iter(distill(None, student, Reconstruction(), data, steps=1, batch=8))).losses)
    ['reconstruction']
    """

    student: str = "student"

    def check(self, cast: Cast) -> None:
        cast.need_network(self.student, by=self)
        cast.need_fields("x", "target", "hidden", by=self)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        def loss(tick: Tick) -> Loss:
            out, target = logits(tick, self.student), tick.batch["target"]
            if out.shape != target.shape:
                need, got = f"outputs of shape {list(target.shape)}", str(list(out.shape))
                raise Incompatible("Reconstruction", need=need, got=got)
            return Loss(filled_in(out, target, tick.batch["hidden"]))

        name = "reconstruction" if self.student == "student" else f"reconstruction {self.student}"
        return (Term(name, self.student, loss, of=self),)


@dataclass(frozen=True, kw_only=True)
class DMAE(OnFeatures):
    """mean |P·s − t| between features of both encoders, which see the same few patches, with a perceptron P.

    Args: those of `OnFeatures`.

    Raises:
        BadSetting: no pairs.
        Incompatible: no such taps, no data with x.

    Source: Bai et al. 2022, arXiv 2208.12256, who add it to the error of reconstruction and tap at three quarters
    of the depth.

    >>> import torch
    >>> from torch import nn
    >>> from limbeck import Dataset, distill
    >>> teacher = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> student = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> run = distill(teacher, student, DMAE(pairs={"1": "1"}), Dataset(x=torch.randn(9, 4)), steps=1, batch=8)
    >>> sorted(next(iter(run)).losses)
    ['dmae']
    """

    projector: Projector = field(default_factory=lambda: Projection(layers=2))

    def value(self, student: Tensor, teacher: Tensor, tick: Tick) -> Tensor:
        return (student - teacher).abs().flatten(1).mean(1)


@dataclass(frozen=True, kw_only=True)
class G2SD(OnFeatures):
    """Smooth L1 distance, β = 2, of P·s to the teacher's features, normalised at each place, seen or hidden.

    Taps are in the decoders, which have tokens for all patches: the student has to say what the teacher thinks of
    what neither has seen.

    Args: those of `OnFeatures`.

    Raises:
        BadSetting: no pairs.
        Incompatible: no such taps, no data with x.

    Source: the generic stage of Huang et al. 2023, arXiv 2302.14771, with β and the norm of the released code.

    >>> import torch
    >>> from torch import nn
    >>> from limbeck import Dataset, distill
    >>> teacher = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> student = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> run = distill(teacher, student, G2SD(pairs={"1": "1"}), Dataset(x=torch.randn(9, 4)), steps=1, batch=8)
    >>> sorted(next(iter(run)).losses)
    ['g2sd']
    """

    def value(self, student: Tensor, teacher: Tensor, tick: Tick) -> Tensor:
        axes = (1,) if teacher.dim() == 4 else (-1,)
        centred = teacher - teacher.mean(axes, keepdim=True)
        known = centred * (centred.square().mean(axes, keepdim=True) + 1e-6).rsqrt()
        return F.smooth_l1_loss(student, known, beta=2.0, reduction="none").flatten(1).mean(1)


__all__ = ["DMAE", "G2SD", "Reconstruction", "filled_in"]
