"""Correspondence: where a place of one image is in another, by features; from teachers or from known matches."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.engine.objective import Loss, Objective, Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Tick
from limbeck.errors import BadSetting, Incompatible, above_zero
from limbeck.objectives.networks.features import one_each
from limbeck.objectives.networks.logits import wide
from limbeck.objectives.networks.projectors import resized
from limbeck.objectives.networks.several import rows


def similarity(one: Tensor, other: Tensor) -> Tensor:
    """cos(a_i, b_j) of the channels of every place i of one image and j of another, [B, N, M].

    Args:
        one: features a, maps [B, D, H, W], tokens [B, N, D] or vectors [B, D].
        other: features b, of as many channels.

    >>> similarity(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]))
    tensor([[[1., 0.]]])
    """
    return F.normalize(rows(one), dim=-1) @ F.normalize(rows(other), dim=-1).mT


def correspondence_loss(student: Tensor, teacher: Tensor, *, temperature: float = 0.05) -> Tensor:
    """KL(softmax(t/τ) ‖ softmax(s/τ)) over the places j of the second image, mean over those of the first, [B].

    Args:
        student: similarities s, [B, N, M].
        teacher: similarities t, [B, N, M]; no gradient flows to them.
        temperature: τ.

    Raises:
        Incompatible: other numbers of places.

    Source: Fundel et al. 2024, arXiv 2412.03512, for similarity maps that follow the teachers'.

    >>> correspondence_loss(torch.zeros(1, 1, 2), torch.tensor([[[9.0, 0.0]]]))
    tensor([0.6931])
    """
    if student.shape != teacher.shape:
        need, got = f"{list(teacher.shape[1:])} places", str(list(student.shape[1:]))
        raise Incompatible("a correspondence", need=need, got=got, fit="features resized to the same places")
    s, t = ((x / temperature).log_softmax(-1) for x in (student, teacher.detach()))
    return (t.exp() * (t - s)).sum(-1).mean(1)


def match_loss(student: Tensor, match: Tensor, *, temperature: float = 0.05) -> Tensor:
    """−ln softmax(s_i/τ) at the match of i, mean over the places i of an image that have one, else 0, [B].

    Args:
        student: similarities s, [B, N, M].
        match: the right place of the second image, below 0 where there is none, [B, N] integers.
        temperature: τ.

    >>> match_loss(torch.zeros(1, 2, 4), torch.tensor([[3, -1]]))
    tensor([1.3863])
    """
    known = match >= 0
    each = F.cross_entropy((student / temperature).mT, match.clamp_min(0), reduction="none")
    return (each * known).sum(1) / known.sum(1).clamp_min(1)


@dataclass(frozen=True, kw_only=True)
class Matching(Objective):
    """A student whose features are compared in two images: fields x and ``pair``. A subclass says what they should be.

    Args:
        student: the name of who learns.
        tap: of the student; a name, see `tap`.
        pair: the field of the other image.
        temperature: τ of similarities.
    """

    student: str = "student"
    tap: str = ""
    pair: str = "pair"
    temperature: float = 0.05

    def __post_init__(self) -> None:
        above_zero("temperature", self.temperature)
        if not self.tap:
            raise BadSetting(f"{type(self).__name__} needs a tap of the student, such as tap='convs'.")

    @property
    def name(self) -> str:
        """Of the loss, with the name of a student that is not the usual one."""
        return " ".join((type(self).__name__.lower(), *([self.student] if self.student != "student" else [])))

    def seen(self, tick: Tick, who: str, tap: str) -> tuple[Tensor, Tensor]:
        """Features of both images, at least float32."""
        first = tick.answer(who).features[tap]
        second = tick.answer(who, tick.batch[self.pair], key=self.pair).features[tap]
        return wide(first), wide(second)


@dataclass(frozen=True, kw_only=True)
class Correspondence(Matching):
    """`correspondence_loss` to the mean `similarity` of several teachers' features: which places are alike.

    The mean of cosines is the cosine of features that are normalised and put side by side. Teachers' maps and tokens
    are brought to the student's places.

    Args: those of `Matching`.
        teachers: the tap of each teacher by its name, ``{"teacher": "blocks.0", "second": "convs.1"}``.

    Raises:
        BadSetting: no tap of the student, no teachers, a temperature that is not above 0.
        Incompatible: no such teachers or taps, no data with x and pair.

    Source: Fundel et al. 2024, arXiv 2412.03512.

    >>> from torch import nn
    >>> from limbeck import Dataset, distill
    >>> teachers = {"teacher": nn.Sequential(nn.Conv2d(1, 8, 3)), "second": nn.Sequential(nn.Conv2d(1, 5, 1))}
    >>> objective = Correspondence(teachers={"teacher": "0", "second": "0"}, tap="0")
    >>> data = Dataset(x=torch.randn(9, 1, 4, 4), pair=torch.randn(9, 1, 4, 4))
    >>> run = distill(teachers, nn.Sequential(nn.Conv2d(1, 2, 1)), objective, data, steps=1, batch=8)
    >>> sorted(next(iter(run)).losses)
    ['correspondence']
    """

    teachers: tuple[tuple[str, str], ...] | Mapping[str, str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.teachers, Mapping):
            object.__setattr__(self, "teachers", tuple(self.teachers.items()))
        if not self.teachers:
            raise BadSetting("Correspondence needs teachers={'teacher': <tap>, …}.")

    def check(self, cast: Cast) -> None:
        for who in (self.student, *dict(self.teachers)):
            cast.need_network(who, by=self)
        cast.need_fields("x", self.pair, by=self)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        known = dict(self.teachers)
        for who, tap in {self.student: self.tap, **known}.items():
            one_each(cast.tap(who, tap, by=self), (tap,), by=self)

        def loss(tick: Tick) -> Loss:
            ours = self.seen(tick, self.student, self.tap)
            with torch.autocast(ours[0].device.type, enabled=False), torch.no_grad():
                theirs = [
                    similarity(*(resized(x, ours[0].shape) for x in self.seen(tick, who, tap)))
                    for who, tap in known.items()
                ]
                mean = torch.stack(theirs).mean(0)
            with torch.autocast(ours[0].device.type, enabled=False):
                return Loss(correspondence_loss(similarity(*ours), mean, temperature=self.temperature))

        return (Term(self.name, self.student, loss, of=self),)


@dataclass(frozen=True, kw_only=True)
class Matches(Matching):
    """`match_loss` of known matches, without a teacher: the baseline of `Correspondence`, or beside it.

    Args: those of `Matching`.
        match: the field of right places, below 0 where there is none, [B, N] integers.

    Raises:
        BadSetting: no tap of the student, a temperature that is not above 0.
        Incompatible: no such tap, no data with x, pair and match.

    >>> from torch import nn
    >>> from limbeck import Dataset, distill
    >>> data = Dataset(x=torch.randn(9, 4), pair=torch.randn(9, 4), match=torch.zeros(9, 1).long())
    >>> run = distill(None, nn.Sequential(nn.Linear(4, 3)), Matches(tap="0"), data, steps=1, batch=8)
    >>> sorted(next(iter(run)).losses)
    ['matches']
    """

    match: str = "match"

    def check(self, cast: Cast) -> None:
        cast.need_network(self.student, by=self)
        cast.need_fields("x", self.pair, self.match, by=self)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        one_each(cast.tap(self.student, self.tap, by=self), (self.tap,), by=self)

        def loss(tick: Tick) -> Loss:
            ours = self.seen(tick, self.student, self.tap)
            with torch.autocast(ours[0].device.type, enabled=False):
                return Loss(match_loss(similarity(*ours), tick.batch[self.match], temperature=self.temperature))

        return (Term(self.name, self.student, loss, of=self),)


__all__ = ["Correspondence", "Matches", "Matching", "correspondence_loss", "match_loss", "similarity"]
