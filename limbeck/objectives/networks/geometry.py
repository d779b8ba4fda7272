"""How much each example follows the teacher is learned, from where student, teacher and label lie to each other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from limbeck.engine.objective import Loss, Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Tick
from limbeck.errors import Incompatible, above_zero, in_range
from limbeck.objectives.networks.logits import Between, both_logits, hard_labels, soft_kl, wide


def edges(student: Tensor, teacher: Tensor, y: Tensor, means: Tensor) -> Tensor:
    """Lengths between the student's p_s, the teacher's p_t, the label g and the teacher's mean p̄ of that class, [B, 6].

    ‖p_s − g‖, ‖p_t − g‖, ‖p_s − p_t‖ of the example's own triangle, ‖p_s − p̄‖, ‖p_t − p̄‖, ‖p̄ − g‖ to the others.

    Args:
        student: logits, [B, C]; no gradient flows to them.
        teacher: logits, [B, C]; no gradient flows to them.
        y: labels, [B].
        means: p̄ of every class, [C, C].

    Source: TGeo-KD, Hu et al. 2023, arXiv 2312.15112, for the points and edges; that lengths are what counts of them
    is ours.

    >>> z = torch.tensor([[99.0, 0.0]])
    >>> edges(z, z.flip(1), torch.tensor([0]), torch.eye(2))[0].square().round()
    tensor([0., 2., 2., 0., 2., 0.])
    """
    s, t = (z.detach().softmax(1) for z in (student, teacher))
    g, mean = F.one_hot(y, s.shape[1]).to(s), means.to(s)[y]
    pairs = ((s, g), (t, g), (s, t), (s, mean), (t, mean), (mean, g))
    return torch.stack([(a - b).norm(dim=1) for a, b in pairs], 1)


def fused(student: Tensor, teacher: Tensor, y: Tensor, share: Tensor, *, temperature: float = 1.0) -> Tensor:
    """a·T²·KL(p_t ‖ p_s) + (1 − a)·CE(s, y), [B].

    Args:
        student: logits, [B, C].
        teacher: logits, [B, C]; no gradient flows to them.
        y: labels, [B].
        share: a, [B].
        temperature: T.

    >>> fused(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]), torch.tensor([1.0]))
    tensor([0.])
    """
    hard = F.cross_entropy(student, y, reduction="none")
    return share * soft_kl(student, teacher, temperature=temperature) + (1 - share) * hard


@dataclass(frozen=True, kw_only=True)
class TrilateralKD(Between):
    """`fused`, with a = σ(MLP(`edges`)) for each example: a small network learns it by what helps on other data.

    That network descends CE(s', y') at the batch's x' and y', where s' is the student after a step of plain descent on
    the fused loss. The teacher's means move with an average of its predictions. The network is dropped afterwards.

    Args: those of `Between`.
        temperature: T of the divergence.
        rate: of the step that is looked ahead.
        width: of the network's hidden layer.
        decay: of the average of the teacher's predictions.
        validation: names of x' and y' in the batch.

    Raises:
        BadSetting: a temperature or rate that is not above 0, no width, a decay outside [0, 1].
        Incompatible: no teacher, no such data, a batch that is cut.

    Source: TGeo-KD, Hu et al. 2023, arXiv 2312.15112.

    >>> from limbeck import Dataset, distill
    >>> x, y = torch.randn(9, 4), torch.arange(9) % 3
    >>> data = Dataset(x=x, y=y, other_x=x.flip(0), other_y=y.flip(0))
    >>> run = distill(nn.Linear(4, 3), nn.Linear(4, 3), TrilateralKD(), data, steps=1, batch=8)
    >>> sorted(next(iter(run)).losses)
    ['trilateralkd', 'trilateralkd ahead']
    """

    coupled: ClassVar[bool] = True
    temperature: float = 4.0
    rate: float = 0.1
    width: int = 16
    decay: float = 0.9
    validation: tuple[str, str] = ("other_x", "other_y")

    def __post_init__(self) -> None:
        above_zero("temperature", self.temperature)
        above_zero("rate", self.rate)
        in_range("width", self.width, 1)
        in_range("decay", self.decay, 0, 1)

    @property
    def fields(self) -> tuple[str, ...]:
        return ("x", "y", *self.validation)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        out = cast.dry(self.teacher).out
        assert out is not None
        classes, like = out.shape[1], next(cast.module(self.student).parameters())
        means = cast.keep(f"{self.name} means", lambda: torch.full((classes, classes), 1 / classes).to(like))
        cast.role(role := f"{self.name} share", lambda: _network(self.width).to(like), spec=self)

        def seen(tick: Tick) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            s, t = both_logits(tick, self, self.student, self.teacher)
            y = hard_labels(tick.batch, by=self)
            return s, t, y, self.shares(cast, s, t, y)

        def loss(tick: Tick) -> Loss:
            s, t, y, share = seen(tick)
            return Loss(fused(s, t, y, share.detach(), temperature=self.temperature))

        def ahead(tick: Tick) -> Loss:
            _, t, y, share = seen(tick)
            value = self._ahead(cast.module(self.student), tick, t, y, share)
            with torch.no_grad():
                average(means, t.softmax(1), y, self.decay)
            return Loss(value)

        return (
            Term(self.name, self.student, loss, of=self),
            Term(f"{self.name} ahead", role, ahead, coupled=True, of=self),
        )

    def shares(self, cast: Cast, student: Tensor, teacher: Tensor, y: Tensor) -> Tensor:
        """How much a run as it stands lets examples with these logits and labels follow the teacher, [B]."""
        means, net = cast.kept[f"{self.name} means"], cast.roles[f"{self.name} share"].module
        assert isinstance(means, Tensor)
        return net(edges(student, teacher, y, means).to(means)).sigmoid()[:, 0]

    def _ahead(self, module: nn.Module, tick: Tick, t: Tensor, y: Tensor, share: Tensor) -> Tensor:
        """CE on other data after one step of the student, as a function of the shares, []."""
        x, other_y = (tick.batch[name] for name in self.validation)
        if other_y.dim() != 1:
            raise Incompatible(type(self).__name__, need="classes for validation", got=f"{list(other_y.shape)}")
        params = {name: p.detach().requires_grad_() for name, p in module.named_parameters()}
        buffers = {name: b.clone() for name, b in module.named_buffers()}
        inner = fused(_asked(module, params, buffers, tick.batch["x"]), t, y, share, temperature=self.temperature)
        steps = torch.autograd.grad(inner.mean(), [*params.values()], create_graph=True, materialize_grads=True)
        moved = {name: p.detach() - self.rate * g for (name, p), g in zip(params.items(), steps, strict=True)}
        return F.cross_entropy(_asked(module, moved, buffers, x), other_y)


def average(means: Tensor, p: Tensor, y: Tensor, decay: float) -> None:
    """Moves the means of the classes that occur towards theirs in this batch, in place.

    >>> means = torch.zeros(2, 2)
    >>> average(means, torch.eye(2)[:1], torch.tensor([1]), 0.9)
    >>> means
    tensor([[0.0000, 0.0000],
            [0.1000, 0.0000]])
    """
    for k in y.unique().tolist():
        means[k].lerp_(p[y == k].mean(0).to(means), 1 - decay)


def _asked(module: nn.Module, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], x: Tensor) -> Tensor:
    out = functional_call(module, {**params, **buffers}, (x,))
    return wide(getattr(out, "logits", out))


def _network(width: int) -> nn.Module:
    """Edges → the logit of a share, one half at first."""
    net = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 1))
    for p in net[-1].parameters():
        nn.init.zeros_(p)
    return net


__all__ = ["TrilateralKD", "average", "edges", "fused"]
