"""One micro-batch of one tick, as a loss sees it: batch, named random numbers, and passes that are made once."""

from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from limbeck.diffusion.denoiser import Denoiser, Featured, Seen
from limbeck.diffusion.guidance import Guidance
from limbeck.diffusion.process import Process
from limbeck.diffusion.times import Times
from limbeck.engine.data import Batch
from limbeck.engine.roles import Cast
from limbeck.engine.student import Draw, Student
from limbeck.errors import Incompatible
from limbeck.rng import Rng, seeded
from limbeck.tree import Tree, tree_leaves


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
        source: what was noised, with its segment and surface.
        via: the point before this one, where a path led here.
    """

    x: Tensor
    x_t: Tensor
    t: Tensor
    eps: Tensor
    cond: Tree
    process: Process
    key: Hashable = None
    source: Draw | None = None
    via: "Noised | None" = None

    def at(self, t: Tensor, key: Hashable) -> "Noised":
        """The same samples under the same noise at other levels t [B]; ``key`` tells these from others."""
        x_t = self.process.add_noise(self.x, self.eps, t)
        return replace(self, x_t=x_t, t=t, key=(self.key, key), via=None)

    def moved(self, x0: Tensor, t: Tensor, key: Hashable) -> "Noised":
        """One DDIM step from here by a prediction x0 to levels t [B], detached: where ``eps`` is what the step used."""
        eps = self.process.convert(x0, self.x_t.detach(), self.t, "x0", "eps")
        return replace(self, x=x0, x_t=self.process.add_noise(x0, eps, t), eps=eps, t=t, key=(self.key, key), via=self)

    def eps_of(self, x0: Tensor) -> Tensor:
        """The noise that a prediction of x0 implies here, (x_t − α·x0)/σ, shape of x0."""
        return self.process.convert(x0, self.x_t.detach(), self.t, "x0", "eps")

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
        self.asked: dict[str, bool] = {}  # networks that it asked for what has no graph, and whether under autocast
        self.grads: Mapping[str, Tensor] = {}
        self._draws: dict[str, tuple[Cut, Draw]] = {}
        self._moved: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._noised: dict[Hashable, Noised] = {}
        self._cuts: dict[tuple[Hashable, tuple[bool, bool]], Cut] = {}

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
            role, learns = self.cast.roles[who], who in self.due
            with same_buffers(role.buffers) as self._moved[who]:
                draw = self._draw(who)
            leaf = draw.x.detach().requires_grad_(learns)
            again = self._same_draw(who) if learns and role.again else None
            self._draws[who] = Cut((who,), [draw.x], (leaf,), again=again), replace(draw, x=leaf)
        draw = self._draws[who][1]
        if who not in self.trains:
            return replace(draw, x=draw.x.detach())
        put_buffers(self._moved.pop(who, []))
        return draw

    def _draw(self, who: str) -> Draw:
        student, learns = self.cast.module(who), who in self.due
        assert isinstance(student, Student)
        with (
            self.seeded(("draw", who)),
            torch.set_grad_enabled(learns),
            self.cast.training((who,) if learns else ()),
        ):
            return student.draw(self.size, self.batch.get("cond"), self.rng(("draw", who)))

    def _same_draw(self, who: str) -> Callable[[], Tensor]:
        """What makes the samples once more, to the same bits and with a graph."""
        kind, before = self.place.device.type, [(buffer, buffer.clone()) for buffer in self.cast.roles[who].buffers]
        half = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None

        def again() -> Tensor:
            with torch.autocast(kind, half) if half else nullcontext(), same_buffers([buffer for buffer, _ in before]):
                put_buffers(before)
                return self._draw(who).x

        return again

    def _let_go(self) -> None:
        """Forgets the graphs of samples that are made again: here comes that of a network beside them."""
        for cut, _ in self._draws.values():
            if cut.again and set(cut.roles) & set(self.trains):
                cut.out.clear()

    def noised(self, times: Times, of: str = "student") -> Noised:
        """The student's samples, or the data's with ``of="data"``, at noise levels drawn from ``times``."""
        return self.seen((of, times), lambda clean, key: self.at(clean, times, key), of)

    def seen(self, key: Hashable, make: Callable[[Draw, Hashable], Noised], of: str = "student") -> Noised:
        """Samples noised in any way, made once for each key; with gradients for a loss that trains the student."""
        clean = self._clean(of)
        if key not in self._noised:
            self._noised[key] = make(replace(clean, x=clean.x.detach()), key)
        seen = replace(self._noised[key], x=clean.x)
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
        rng, x = self.rng(("noised", key)), draw.x
        t = self.levels(draw, times, key, rng)
        eps = rng.normal(len(x), *x.shape[1:], dtype=x.dtype)
        return Noised(x, self.process.add_noise(x, eps, t), t, eps, draw.cond, self.process, key, draw)

    def levels(self, draw: Draw, times: Times, key: Hashable, rng: Rng | None = None) -> Tensor:
        """Noise levels from ``times`` for these samples, float64 [B]."""
        return times.within(draw.segment, len(draw.x), self.process, rng or self.rng(("noised", key)), self.progress)

    @property
    def process(self) -> Process:
        """The noise process of the teacher, or without one of the student."""
        for module in (*self.cast.teachers.values(), *self.cast.students.values()):
            if isinstance(process := getattr(module, "process", None), Process):
                return process
        raise Incompatible("this objective", need="a teacher with a noise process", got="none")

    def denoise(self, who: str, noised: Noised, guidance: Guidance | None = None, *, grad: bool = False) -> Tensor:
        """x0 predicted by a teacher or role, shape of x_t; detached unless ``grad``."""
        x0 = self._pass(who, noised, guidance, grad=grad).out
        assert x0 is not None
        return x0 if grad else x0.detach()

    def look(self, who: str, noised: Noised, module: Featured | None = None) -> Seen:
        """All features of a role or teacher, or of a ``module`` that belongs to a role, at noised samples."""
        if module is None and (who, noised.key) in self.cast.watched:
            return self._pass(who, noised, None, grad=True)
        if noised.x_t.requires_grad:
            self._let_go()
        eyes = module or self.cast.need(who, Featured, by=self)
        return eyes.look(noised.x_t, noised.t, noised.cond, taps=tuple(eyes.taps), x0=False)

    def _pass(self, who: str, noised: Noised, guidance: Guidance | None, *, grad: bool) -> Seen:
        """A pass that serves every loss of the tick: its graph is cut at what comes out, and one pass at the end takes
        the sum of all gradients back. Where features are `watched`, it gives them too.
        """
        guidance = guidance and guidance.at(self.rng(("guidance", guidance), shared=True))
        watched = guidance is None and (who, noised.key) in self.cast.watched
        mark = (who in self.trains, noised.x_t.requires_grad) if grad or watched else (False, False)
        key = object() if noised.key is None else (who, noised.key, guidance)

        def make() -> Seen:
            with self.seeded(("denoise", who, noised.key)):
                return self._ask(who, noised if mark[1] else noised.detached(), guidance, features=watched)

        return self._once(key, who, mark, make)

    def _once(self, key: Hashable, who: str, mark: tuple[bool, bool], make: Callable[[], Seen]) -> Seen:
        """A pass with gradients for the role's parameters and for what it is asked at, as marked, or without any."""
        for (known, other), cut in self._cuts.items():
            if known == key and mark in (other, (False, False)):
                return cut.seen if any(mark) else cut.seen.detached()
        if mark[1]:
            self._let_go()
        with torch.set_grad_enabled(any(mark)):
            seen = make()
        cut = Cut.of(seen, (who,) if mark[0] else self.trains, grad=any(mark))
        self._cuts[key, mark] = cut
        return cut.seen

    def answer(self, who: str, x: Tree = None, key: Hashable = "x") -> Seen:
        """Output and tapped features of a network, made once and cut, at the batch's x, or at ``x`` named ``key``.

        The first pass of a role that some loss of this tick trains has a graph, whoever asks: there is no second one.

        Raises:
            Incompatible: features that cannot train the role that is asked, a network that writes into its inputs.
        """
        usual, learns = x is None and key == "x", who in self.due
        x = self.batch["x"] if x is None else x
        moved = any(leaf.requires_grad for leaf in tree_leaves(x))
        if usual and not (learns or moved):
            self.asked.setdefault(who, torch.is_autocast_enabled(self.place.device.type))

        def make() -> Seen:
            versions = [leaf._version for leaf in tree_leaves(x)]
            still = self.cast.roles[who].buffers if who in self.cast.roles and not learns else ()
            with (
                self.seeded(("answer", who, key)),
                self.cast.training((who,) if learns else self.trains),
                same_buffers(still),  # running statistics are of the batches that a network learns from
            ):
                seen = self.cast.ask(who, x)
            if versions != [leaf._version for leaf in tree_leaves(x)]:  # what the next one sees would be that
                need, got = "a network that leaves its inputs as they are", "one that writes into them"
                raise Incompatible(f"the {who}", need=need, got=got, fit="no operation in place on x")
            if lost := [name for name, value in seen.features.items() if learns and not value.requires_grad]:
                got = "none, as frozen layers and reentrant checkpointing leave it"
                raise Incompatible(f"tap {lost[0]!r} of the {who}", need="features with gradient", got=got)
            return seen

        seen = self._once(("answer", who, key), who, (learns, moved), make)
        return seen if who in self.trains or moved else seen.detached()

    def guided(self, guidance: Guidance | None, denoiser: Denoiser) -> Denoiser:
        """A denoiser under a guidance, as that is in this tick."""
        return guidance.at(self.rng(("guidance", guidance), shared=True))(denoiser) if guidance else denoiser

    def _ask(self, who: str, noised: Noised, guidance: Guidance | None, *, features: bool) -> Seen:
        x_t = noised.x_t
        if noised.x.requires_grad:  # anew, for the loss that asks frees the graph behind its own
            x_t = noised.process.add_noise(noised.x, noised.eps, noised.t)
        if features:
            eyes = self.cast.need(who, Featured, by=self)
            return eyes.look(x_t, noised.t, noised.cond, taps=tuple(eyes.taps))
        module = self.cast.need(who, Denoiser, by=self)
        return Seen((guidance(module) if guidance else module).denoise(x_t, noised.t, noised.cond), {})

    def forget(self) -> None:
        """Lets go of what was passed without a graph: no loss wants it any more, and graphs need the memory."""
        self._cuts = {key: cut for key, cut in self._cuts.items() if cut.leaves[0].requires_grad}

    @property
    def cuts(self) -> Iterator["Cut"]:
        """Where the graph was cut, in the order in which gradients go back through: passes first, then draws."""
        yield from (cut for cut in self._cuts.values() if cut.leaves[0].requires_grad)
        yield from (cut for cut, _ in self._draws.values() if cut.leaves[0].requires_grad)


@dataclass(frozen=True)
class Cut:
    """A pass whose graph ends at ``out``; losses see ``leaves`` of the same values and leave their gradients there.

    What ends at nothing any more is made ``again`` where that is known.
    """

    roles: tuple[str, ...]
    out: list[Tensor]
    leaves: tuple[Tensor, ...]
    seen: Seen = Seen(None, {})
    again: Callable[[], Tensor] | None = None

    @classmethod
    def of(cls, seen: Seen, roles: tuple[str, ...], *, grad: bool) -> "Cut":
        """A pass, cut."""
        assert seen.out is not None
        out = [seen.out, *seen.features.values()]
        leaves = tuple(x.detach().requires_grad_(grad) for x in out)
        return cls(roles, out, leaves, Seen(leaves[0], dict(zip(seen.features, leaves[1:], strict=True))))

    def back(self, *, keep: bool) -> None:
        """Takes the leaves' gradients through the pass, and forgets them; unless ``keep``, the pass is over."""
        asked = [k for k, leaf in enumerate(self.leaves) if leaf.grad is not None]
        assert self.out or self.again or not asked, "a loss came after the last one that trains its roles"
        out = [self.again()] if asked and self.again and not self.out else self.out
        pairs = [(out[k], self.leaves[k].grad) for k in asked]
        if pairs:
            torch.autograd.backward([out for out, _ in pairs], [grad for _, grad in pairs], retain_graph=keep)
        for leaf in self.leaves:
            leaf.grad = None
        if not keep:
            self.out.clear()  # what no gradient came back to would hold its part of the graph


def same_buffers(buffers: Sequence[Tensor]) -> AbstractContextManager[list[tuple[Tensor, Tensor]]]:
    """Inside, a pass may change these buffers (running statistics); after it they are as before.

    What the pass made of each is then in the list that is given.
    """
    return _put_back(buffers) if buffers else nullcontext([])


@contextmanager
def _put_back(buffers: Sequence[Tensor]) -> Generator[list[tuple[Tensor, Tensor]]]:
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


__all__ = ["Cut", "Noised", "Place", "Tick", "put_buffers", "same_buffers"]
