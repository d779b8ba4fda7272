"""Several teachers of features at once: each as loud as the others, and the one that is followed least always heard."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.engine.objective import Loss, Objective, Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Tick
from limbeck.errors import BadSetting, in_range
from limbeck.objectives.networks.features import one_each
from limbeck.objectives.networks.logits import wide
from limbeck.objectives.networks.projectors import Projection, Projector


def rows(features: Tensor) -> Tensor:
    """Features [B, D], tokens [B, N, D] or maps [B, D, H, W] as places in a row, [B, N, D].

    >>> rows(torch.zeros(2, 3, 4, 4)).shape, rows(torch.zeros(2, 3)).shape
    (torch.Size([2, 16, 3]), torch.Size([2, 1, 3]))
    """
    return features.flatten(2).mT if features.dim() == 4 else features.view(len(features), -1, features.shape[-1])


def standardised(features: Tensor, *, eps: float = 1e-5) -> Tensor:
    """(f − mean)/√(var + eps) for each channel, over the batch and all places, [B, N, D].

    Args:
        features: [B, N, D].
        eps: added to variances, which divide by B·N.

    >>> standardised(torch.tensor([[[1.0]], [[3.0]]])).flatten()
    tensor([-1.0000,  1.0000])
    """
    centred = features - features.mean((0, 1))
    return centred / (centred.square().mean((0, 1)) + eps).sqrt()


def cosine_and_smooth(student: Tensor, teacher: Tensor) -> Tensor:
    """½·(1 − cos(s, t)) + ½·smooth-L1(s − t), mean over places, [B]; the second is a mean over channels.

    Args:
        student: features s, [B, N, D].
        teacher: features t, [B, N, D].

    Source: UNIC, Sariyildiz et al. 2024, arXiv 2408.05088; both halves as in the released code.

    >>> cosine_and_smooth(torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[0.0, 2.0]]]))
    tensor([1.2500])
    """
    angle = 1 - F.cosine_similarity(student, teacher, dim=-1)
    apart = F.smooth_l1_loss(student, teacher, reduction="none").mean(-1)
    return (angle + apart).mean(1) / 2


def heard(losses: Tensor, chance: Tensor, *, drop: float) -> Tensor:
    """Whom each example hears: the teacher it loses most by, and others whose chance is not below ``drop``, [B, K].

    Args:
        losses: by each of K teachers, [B, K].
        chance: uniform in [0, 1), [B, K].
        drop: the share of the others that are dropped.

    Source: UNIC, Sariyildiz et al. 2024, arXiv 2408.05088, as in the released code.

    >>> heard(torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([[0.1, 0.1, 0.9]]), drop=0.5)
    tensor([[False,  True,  True]])
    """
    most = F.one_hot(losses.argmax(1), losses.shape[1]).bool()
    return most | (chance >= drop)


@dataclass(frozen=True, kw_only=True)
class UNIC(Objective):
    """`cosine_and_smooth` to several teachers' `standardised` features, mean over examples and those they hear.

    What is compared with a teacher is the sum of projections of the student's last layer and of earlier ones, the
    ladder. Projectors belong to one teacher each, learn along, and are dropped afterwards.

    Args:
        student: the name of who learns.
        teachers: the tap of each teacher by its name, ``{"teacher": "blocks", "second": "blocks"}``.
        last: the student's tap that is to be useful afterwards.
        ladder: taps before it.
        drop: how often a teacher that is not the one most lost by is not heard; see `heard`.
        projector: of each tap for each teacher.

    Raises:
        BadSetting: no teachers, no last layer, or a share outside [0, 1].
        Incompatible: no such teachers or taps, no inputs x, a batch that is cut.

    Source: Sariyildiz et al. 2024, arXiv 2408.05088; features are standardised by the batch here, by running averages
    there.

    >>> from limbeck import Dataset, distill
    >>> teachers = {"teacher": nn.Sequential(nn.Linear(4, 8)), "second": nn.Sequential(nn.Linear(4, 5))}
    >>> student = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    >>> objective = UNIC(teachers={"teacher": "0", "second": "0"}, last="2", ladder=("1",))
    >>> run = distill(teachers, student, objective, Dataset(x=torch.randn(9, 4)), steps=1, batch=8)
    >>> sorted(next(iter(run)).losses)
    ['unic']
    """

    student: str = "student"
    teachers: tuple[tuple[str, str], ...] | Mapping[str, str] = ()
    last: str = ""
    ladder: tuple[str, ...] = ()
    drop: float = 0.5
    projector: Projector = field(default_factory=lambda: Projection(layers=2))

    def __post_init__(self) -> None:
        if isinstance(self.teachers, Mapping):
            object.__setattr__(self, "teachers", tuple(self.teachers.items()))
        if not self.teachers or not self.last:
            raise BadSetting("UNIC needs teachers={'teacher': <tap>, …} and the student's last=<tap>.")
        in_range("drop", self.drop, 0, 1)

    @property
    def _known(self) -> dict[str, str]:
        return dict(self.teachers)

    def check(self, cast: Cast) -> None:
        for who in (self.student, *self._known):
            cast.need_network(who, by=self)
        cast.need_fields("x", by=self)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        mine = self.last, *self.ladder
        for who, taps in {self.student: mine, **{name: (tap,) for name, tap in self._known.items()}}.items():
            one_each(cast.tap(who, *taps, by=self), taps, by=self)
        name = "unic" if self.student == "student" else f"unic {self.student}"
        role = f"{name} projectors to {', '.join(self._known)}"
        ladders = cast.role(role, lambda: self._built(cast), spec=self).module
        assert isinstance(ladders, nn.ModuleList)

        def loss(tick: Tick) -> Loss:
            seen, parts = tick.answer(self.student).features, list[Tensor]()
            for (who, tap), ladder in zip(self._known.items(), ladders, strict=True):
                assert isinstance(ladder, nn.ModuleList)
                made = torch.stack([module(seen[name]) for name, module in zip(mine, ladder, strict=True)]).sum(0)
                known = standardised(rows(wide(tick.answer(who).features[tap])))
                parts.append(cosine_and_smooth(rows(wide(made)), known))
            losses = torch.stack(parts, 1)
            chance = tick.rng((self, "drop")).uniform(*losses.shape)
            kept = heard(losses.detach(), chance, drop=self.drop).to(losses)
            return Loss((kept * losses).sum() / kept.sum())

        return (Term(name, (self.student, role), loss, coupled=True, of=self),)

    def _built(self, cast: Cast) -> nn.ModuleList:
        seen = cast.dry(self.student).features
        known = [cast.dry(who).features[tap] for who, tap in self._known.items()]
        made = (
            nn.ModuleList(self.projector.build(seen[name].shape, t.shape) for name in (self.last, *self.ladder))
            for t in known
        )
        return nn.ModuleList(made).to(next(cast.module(self.student).parameters()))


__all__ = ["UNIC", "cosine_and_smooth", "heard", "standardised"]
