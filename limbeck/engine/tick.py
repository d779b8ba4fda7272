"""One micro-batch of one tick, as a loss sees it: batch, named random numbers, and passes that are made once."""

from collections.abc import Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.guidance import Guidance
from limbeck.diffusion.process import Process
from limbeck.diffusion.times import Times
from limbeck.engine.data import Batch
from limbeck.engine.roles import Cast
from limbeck.engine.student import Draw, Student
from limbeck.errors import Incompatible
from limbeck.rng import Rng, seeded
from limbeck.tree import Tree


@dataclass(frozen=True)
class Noised:
    """Samples at noise level t: x_t = α(t)·x + σ(t)·ε.

    Args:
        x: clean samples, [B, …]; a leaf of the graph where the student learns from them.
        x_t: noised samples, [B, …].
        t: noise levels, float64 [B].
        eps: the noise, [B, …].
        cond: conditions.
        process: the noise process.
        key: names these samples among the tick's passes.
    """

    x: Tensor
    x_t: Tensor
    t: Tensor
    eps: Tensor
    cond: Tree
    process: Process
    key: Hashable = None

    def detached(self) -> "Noised":
        """The same without gradients."""
        return replace(self, x=self.x.detach(), x_t=self.x_t.detach())


@dataclass(frozen=True)
class Place:
    """Where a micro-batch stands: rows ``part`` of the ``total`` of a tick, in a run that has these names."""

    seed: tuple[object, ...]
    i: int
    progress: float
    part: slice
    total: int
    device: torch.device


class Tick:
    """One micro-batch of one tick.

    Every sample, noised version and detached pass is made once and shared between the losses, by equal settings.
    Random numbers have names, so that parts of an objective do not disturb each other; the rows of a tick are drawn
    whole and cut, so that micro-batches and ranks change nothing.

    Attributes:
        i: the tick, counted from 0.
        progress: i over the number of steps, in [0, 1).
        batch: this micro-batch of the data.
        cast: who takes part.
        grads: for a student that grows, its gradients by parameter name after the tick's losses.
    """

    def __init__(self, cast: Cast, place: Place, batch: Batch, due: frozenset[str]):
        self.cast, self.place, self.batch, self.due = cast, place, batch, due
        self.i, self.progress = place.i, place.progress
        self.size = place.part.stop - place.part.start
        self.trains: tuple[str, ...] = ()  # the roles of the loss that is being computed
        self.grads: Mapping[str, Tensor] = {}
        self._draws: dict[str, tuple[Tensor, Draw]] = {}
        self._moved: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._noised: dict[Hashable, Noised] = {}
        self._passes: dict[Hashable, Tensor] = {}

    def rng(self, name: object, *, shared: bool = False) -> Rng:
        """Random numbers of this name; rows differ between micro-batches and ranks unless ``shared``."""
        place = self.place
        part, total = (None, None) if shared else (place.part, place.total)
        return Rng((*place.seed, place.i, name), part=part, total=total, device=place.device)

    def seeded(self, name: object) -> AbstractContextManager[None]:
        """A block in which torch's global generator (dropout) is seeded by this name."""
        return seeded(*self.place.seed, self.i, self.place.part.start, name)

    def draw(self, who: str = "student") -> Draw:
        """This tick's samples of a student, the same for every loss.

        The graph is cut here: a loss that trains the student gets a leaf, and its gradient goes through the student
        in one pass at the end; other losses get the same values without gradient, and without a trace in the student:
        its running statistics move when the first loss that trains it asks.
        """
        if who not in self._draws:
            student = self.cast.module(who)
            assert isinstance(student, Student)
            learns = who in self.due
            with (
                self.seeded(("draw", who)),
                torch.set_grad_enabled(learns),
                self.cast.training((who,) if learns else ()),
                same_buffers(self.cast.roles[who].buffers) as self._moved[who],
            ):
                draw = student.draw(self.size, self.batch.get("cond"), self.rng(("draw", who)))
            self._draws[who] = draw.x, replace(draw, x=draw.x.detach().requires_grad_(learns))
        draw = self._draws[who][1]
        if who not in self.trains:
            return replace(draw, x=draw.x.detach())
        put_buffers(self._moved.pop(who, []))
        return draw

    def noised(self, times: Times, of: str = "student") -> Noised:
        """The student's samples, or the data's with ``of="data"``, at noise levels drawn from ``times``."""
        key, clean = (of, times), self._clean(of)
        if key not in self._noised:
            self._noised[key] = self.at(clean, times, key)
        seen = self._noised[key]
        if of not in self.trains:
            return seen.detached()
        return replace(seen, x_t=seen.process.add_noise(seen.x, seen.eps, seen.t))  # each loss frees its own graph

    def _clean(self, of: str) -> Draw:
        if of == "data":
            return Draw(self.batch["x"], self.batch.get("cond"))
        self.draw(of)
        return self._draws[of][1]

    def at(self, draw: Draw, times: Times, key: Hashable) -> Noised:
        """Any samples at noise levels drawn from ``times``, with random numbers named ``key``."""
        process, rng, x = self.process, self.rng(("noised", key)), draw.x
        t = times.sample(len(x), process, rng, self.progress)
        eps = rng.normal(len(x), *x.shape[1:], dtype=x.dtype)
        return Noised(x, process.add_noise(x, eps, t), t, eps, draw.cond, process, key)

    @property
    def process(self) -> Process:
        """The noise process of the teacher, or without one of the student."""
        for module in (*self.cast.teachers.values(), *self.cast.students.values()):
            if isinstance(process := getattr(module, "process", None), Process):
                return process
        raise Incompatible("this objective", need="a teacher with a noise process", got="none")

    def denoise(self, who: str, noised: Noised, guidance: Guidance | None = None, *, grad: bool = False) -> Tensor:
        """x0 predicted by a teacher or role, shape of x_t; detached unless ``grad``, and then made once."""
        key = (who, noised.key, guidance)
        if not grad and noised.key is not None and key in self._passes:
            return self._passes[key]
        module = self.cast.need(who, Denoiser, by=self)
        denoiser = guidance(module) if guidance else module
        x_t = noised.x_t if grad else noised.x_t.detach()
        with self.seeded(("denoise", who, noised.key)), torch.set_grad_enabled(grad):
            x0 = denoiser.denoise(x_t, noised.t, noised.cond)
        self._passes[key] = x0.detach()
        return x0 if grad else x0.detach()

    @property
    def leaves(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(student, its samples with their graph, the leaf that was cut from them) of every draw that learns."""
        return ((who, x, draw.x) for who, (x, draw) in self._draws.items() if draw.x.requires_grad)


@contextmanager
def same_buffers(buffers: Sequence[Tensor]) -> Generator[list[tuple[Tensor, Tensor]]]:
    """Inside, a pass may change these buffers (running statistics); after it they are as before.

    What the pass made of each is then in the list that is given.
    """
    before, after = [buffer.clone() for buffer in buffers], list[tuple[Tensor, Tensor]]()
    try:
        yield after
    finally:
        after += [(buffer, buffer.clone()) for buffer in buffers]
        put_buffers([(buffer, value) for (buffer, _), value in zip(after, before, strict=True)])


def put_buffers(values: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Sets buffers, behind the back of a graph that holds them."""
    for buffer, value in values:
        buffer.data.copy_(value)


__all__ = ["Noised", "Place", "Tick", "put_buffers", "same_buffers"]
