"""Talking models: student and teacher send each other messages, and the student answers its task by the reply."""

from dataclasses import dataclass, field

from torch import Size, Tensor, nn
from torch.nn import functional as F

from limbeck.engine.objective import Loss, Term
from limbeck.engine.roles import Cast
from limbeck.engine.tick import Tick, same_buffers
from limbeck.errors import in_range
from limbeck.objectives.networks.features import mean_square, one_each
from limbeck.objectives.networks.logits import Between, hard_labels, wide
from limbeck.objectives.networks.projectors import Projection, Projector
from limbeck.objectives.networks.steering import outputs, steered


def of_width(shape: Size, width: int) -> Size:
    """The shape of features at the same places with so many channels.

    >>> of_width(Size([8, 16, 4, 4]), 3), of_width(Size([8, 49, 32]), 3)
    (torch.Size([8, 3, 4, 4]), torch.Size([8, 49, 3]))
    """
    return Size((shape[0], width, *shape[2:])) if len(shape) == 4 else Size((*shape[:-1], width))


@dataclass(frozen=True, kw_only=True)
class Talk(Between):
    """i·CE(reply) + c·Σ mean (own − heard)²: a question to the teacher, its reply, and both understood.

    From its lower state s the student sends a message E(s). The teacher goes on from what it reads in it, D(E(s)), in
    the place of its own lower state t, and sends a message about the upper state u that comes of it. The student goes
    on from what it reads in that, D(E(u)), in the place of its upper state v, and says the label. What is read is
    compared with the reader's own state on the same input, D(E(s)) with t and D(E(u)) with v, so that a student
    without a teacher comes to think what it would be told.

    Encoders and decoders learn with the student and are dropped afterwards; the teacher stays as it is.

    Args:
        lower: (submodule of the student, of the teacher), each of which puts out one tensor.
        upper: the same, further up.
        width: channels of a message; it has the teacher's places.
        interact: i.
        consistent: c.
        coder: makes encoders and decoders.

    Raises:
        BadSetting: a weight below 0, no width.
        Incompatible: no teacher, no such submodules, no inputs x or labels y.

    Source: Zhao et al. 2023, arXiv 2310.03188, for interaction and consistency of states; a third loss there, of
    messages, and fine-tuning of the teacher are left out.

    >>> import torch
    >>> from limbeck import Dataset, distill
    >>> teacher, student = (
    ...     nn.Sequential(nn.Linear(4, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(), nn.Linear(n, 3)) for n in (16, 8)
    ... )
    >>> data = Dataset(x=torch.randn(9, 4), y=torch.arange(9) % 3)
    >>> run = distill(teacher, student, Talk(lower=("1", "1"), upper=("3", "3")), data, steps=1, batch=8)
    >>> sorted(next(iter(run)).losses)
    ['talk']
    """

    lower: tuple[str, str] = ("blocks.0", "blocks.0")
    upper: tuple[str, str] = ("blocks.2", "blocks.2")
    width: int = 16
    interact: float = 1.0
    consistent: float = 1.0
    coder: Projector = field(default_factory=lambda: Projection(layers=2))

    def __post_init__(self) -> None:
        in_range("width", self.width, 1)
        in_range("interact", self.interact, 0)
        in_range("consistent", self.consistent, 0)

    @property
    def fields(self) -> tuple[str, ...]:
        return ("x", "y")

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        for who, taps in zip((self.student, self.teacher), zip(self.lower, self.upper, strict=True), strict=True):
            one_each(cast.tap(who, *taps, by=self), taps, by=self)
        outputs((*self.lower, *self.upper), by=self)
        role = f"{self.name} coders {', '.join((*self.lower, *self.upper))}"
        coders = cast.role(role, lambda: self._coders(cast), spec=self).module
        assert isinstance(coders, nn.ModuleList)
        ask, hear, reply, read = coders

        def loss(tick: Tick) -> Loss:
            x, y = tick.batch["x"], hard_labels(tick.batch, by=self)
            own, known = (tick.answer(who).features for who in (self.student, self.teacher))
            heard = hear(ask(own[self.lower[0]]))
            u = self._onward(tick, self.teacher, x, (self.lower[1], heard), self.upper[1])
            told = read(reply(u))
            student = tick.cast.module(self.student)
            # running statistics are of what the networks see by themselves
            with same_buffers([*student.buffers()]), steered(student, {self.upper[0]: lambda _: told}):
                out = tick.cast.ask(self.student, x).out
            assert out is not None
            said = F.cross_entropy(wide(out), y, reduction="none")
            pairs = (known[self.lower[1]], heard), (own[self.upper[0]], told)
            apart = [mean_square(wide(a), wide(b)) for a, b in pairs]
            return Loss(self.interact * said + self.consistent * (apart[0] + apart[1]))

        return (Term(self.name, (self.student, role), loss, of=self),)

    @staticmethod
    def _onward(tick: Tick, who: str, x: Tensor, start: tuple[str, Tensor], end: str) -> Tensor:
        """What a network thinks at ``end`` if it thinks so at the start."""
        name, state = start
        module = tick.cast.module(who)
        with (
            same_buffers([*module.buffers()]),
            steered(module, {name: lambda _: state, end: lambda made: made}) as made,
        ):
            tick.cast.ask(who, x)
        return made[end]

    def _coders(self, cast: Cast) -> nn.ModuleList:
        """Of the question: the student's encoder, the teacher's decoder; of the reply: its encoder, the student's."""
        shapes = [
            [cast.dry(who).features[name].shape for who, name in zip((self.student, self.teacher), pair, strict=True)]
            for pair in (self.lower, self.upper)
        ]
        (s, t), (v, u) = shapes
        asked, replied = of_width(t, self.width), of_width(u, self.width)
        pairs = (s, asked), (asked, t), (u, replied), (replied, v)
        made = [self.coder.build(*pair) for pair in pairs]
        return nn.ModuleList(made).to(next(cast.module(self.student).parameters()))


__all__ = ["Talk", "of_width"]
