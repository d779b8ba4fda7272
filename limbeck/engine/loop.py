"""distill(): the only training loop. It owns optimisers, accumulation, averages, the guard against NaN, and growth."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from limbeck.engine.books import Books, gradients
from limbeck.engine.data import Source, as_source
from limbeck.engine.memory import Memory
from limbeck.engine.objective import Objective, Term
from limbeck.engine.optim import EMA, Optim
from limbeck.engine.ranks import any_of, as_the_first
from limbeck.engine.roles import Cast, Role
from limbeck.engine.scaling import scaling_for
from limbeck.engine.shards import explained, filled, gathered, husk, part_of, scatter
from limbeck.engine.states import load_module, own_state
from limbeck.engine.student import Grows
from limbeck.engine.tick import Place, Tick, put_buffers
from limbeck.errors import BadSetting, Diverged, Incompatible, in_range
from limbeck.rng import Rng

BASE = "lent by"
"""What a result that has borrowed says of the lender; no parameter is called so."""

PATIENCE = 10
"""So many updates in a row may have a non-finite loss or gradient before a run ends; overflows of a scale are none."""


@dataclass(frozen=True)
class Step:
    """What one tick did.

    Args:
        i: ticks done so far, this one included.
        losses: mean of each loss that was due, by term.
        norms: gradient norm of each role that was due, before clipping.
        skipped: roles whose update was not finite and was left out.
        seconds: wall-clock time of the tick.
    """

    i: int
    losses: Mapping[str, float]
    norms: Mapping[str, float]
    skipped: tuple[str, ...]
    seconds: float

    @property
    def measured(self) -> dict[str, Mapping[str, float]]:
        """Losses and norms, by those names."""
        return {"losses": self.losses, "norms": self.norms}


def distill(
    teacher: nn.Module | Mapping[str, nn.Module] | None,
    student: nn.Module | Mapping[str, nn.Module],
    objective: Objective,
    data: Source | Tensor | None = None,
    *,
    steps: int,
    batch: int = 256,
    optim: Optim | Mapping[str, Optim] | None = None,
    ema: EMA | None = None,
    accumulate: int = 1,
    autocast: torch.dtype | None = None,
    memory: Memory | Mapping[str, Memory] | None = None,
    shard: bool = False,
    seed: int | tuple[object, ...] = 0,
) -> "Run":
    """Sets up a distillation and checks that its parts fit; iterate over the result to run it.

    A tick draws the batch, computes every loss that is due on every micro-batch at the tick's starting parameters,
    and then takes one step of every role that some loss trained.

    Args:
        teacher: what knows, or several by name, or None; frozen and put into evaluation mode.
        student: what learns, or several by name, one of them ``student``.
        objective: which losses train whom.
        data: where batches come from; a tensor [N, …] is a data set of samples x.
        steps: number of ticks.
        batch: rows of a tick, over all micro-batches and ranks.
        optim: how roles learn; one for all, or by role with ``"default"`` for the others.
        ema: moving average of each student; where there is one, it is the result.
        accumulate: micro-batches of a tick.
        autocast: dtype of the forward passes, such as ``torch.bfloat16``; for ``torch.float16`` losses are scaled, see
            `limbeck.engine.scaling`.
        memory: how networks lie in memory; one for all, or by teacher and role with ``"default"`` for the others.
        shard: of several processes each holds a part of every network, the ones given here included, which are then
            called and not read; `Run.whole` and `Run.finish` give results in one piece. One process holds all.
        seed: of everything random.

    Raises:
        Incompatible: parts that do not fit, before step 0.
        BadSetting: numbers out of range.

    >>> from limbeck import SDS, Adam, GaussianMixture, Particles, distill
    >>> teacher = GaussianMixture(means=torch.tensor([[3.0]]), std=0.1)
    >>> particles = Particles(torch.zeros(16, 1))
    >>> run = distill(teacher, particles, SDS(), steps=200, batch=16, optim=Adam(lr=0.1))
    >>> for step in run: pass
    >>> bool((particles.x - 3).abs().max() < 0.5)
    True
    """
    teachers = {} if teacher is None else teacher if isinstance(teacher, Mapping) else {"teacher": teacher}
    students = student if isinstance(student, Mapping) else {"student": student}
    optims = {"default": optim} if isinstance(optim, Optim) else optim or {}
    return Run(
        Cast(
            teachers,
            students,
            optims,
            (source := as_source(data)).fields,
            _names(seed),
            lambda: source.take(2, Rng((*_names(seed), "example"))),
            {"default": memory} if isinstance(memory, Memory) else memory,
        ),
        objective,
        source,
        steps=steps,
        batch=batch,
        ema=ema,
        accumulate=accumulate,
        autocast=autocast,
        shard=shard,
        seed=_names(seed),
    )


class Run:
    """A distillation under way: an iterable of `Step`, with all of its state in `state_dict`."""

    def __init__(
        self,
        cast: Cast,
        objective: Objective,
        source: Source,
        *,
        steps: int,
        batch: int,
        ema: EMA | None,
        accumulate: int,
        autocast: torch.dtype | None,
        shard: bool,
        seed: tuple[object, ...],
    ):
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        in_range("steps", steps, 1)
        in_range("accumulate", accumulate, 1)
        in_range("batch", batch, 1)
        if batch % (accumulate * self.world):
            raise BadSetting(f"batch must be a multiple of {accumulate * self.world}, got {batch}.")
        self.cast, self.objective, self.source, self.steps, self.batch = cast, objective, source, steps, batch
        self.accumulate, self.autocast, self.seed = accumulate, autocast, seed
        objective.check(cast)
        self.terms = ordered(objective.terms(cast), first=cast.students)
        self.source = source.only(cast.asked)
        cast.check_optim()
        self.ema = {name: cast.target(name, ema) for name in cast.students} if ema else {}
        as_the_first(cast.tensors())
        self._refuse_coupled()
        for name in cast.students:
            if not any(name in term.roles and term.weight != 0 for term in self.terms):
                raise Incompatible("a run", need=f"a loss that trains the {name}", got="none of weight above 0")
        self._empty: dict[str, nn.Module] = {}
        self._forget: Callable[[], None] | None = None
        if shard and self.world > 1:
            self._empty = {name: husk(self.result(name)) for name in cast.students}
            self._forget = scatter(cast)
        self.device = next((p.device for s in cast.students.values() for p in s.parameters()), torch.device("cpu"))
        self.i = 0
        self.skipped = 0
        self.asked: dict[str, dict[str, bool]] = {}
        self._failures = dict.fromkeys(cast.roles, 0)
        trained = (p for role in cast.roles.values() for p in role.params.values())
        self.scaling = scaling_for(autocast, cast.tensors(), trained)

    def _refuse_coupled(self) -> None:
        if self.accumulate * self.world == 1:
            return
        for term in self.terms:
            if term.coupled:
                got = f"{self.accumulate} micro-batches on {self.world} ranks"
                raise Incompatible(f"{term.name}, which couples its batch,", need="whole batches", got=got)

    @property
    def student(self) -> nn.Module:
        """The result so far: the moving average of the student where there is one."""
        return self.result("student")

    def result(self, name: str) -> nn.Module:
        """The result so far of the student of this name."""
        return self.ema.get(name) or self.cast.students[name]

    def whole(self, name: str = "student") -> nn.Module:
        """That result in one piece; of shards a copy, which all processes make together."""
        return filled(self._empty[name], self.result(name)) if name in self._empty else self.result(name)

    def result_state(self, student: nn.Module) -> dict[str, Any]:
        """What is to be kept of the student in one piece: all but what a teacher lent it, and what tells that."""
        role = self.cast.roles["student"]
        return {**own_state(student, role.lent), **({BASE: role.base} if role.lent else {})}

    def load_result(self, state: Mapping[str, Any]) -> nn.Module:
        """The student of a run built anew, with what `result_state` gave."""
        role = self.cast.roles["student"]
        role.check_base(state.get(BASE))
        load_module(self.student, {name: x for name, x in state.items() if name != BASE}, role.lent)
        return self.student

    @property
    def healthy(self) -> bool:
        """Whether the last updates and all parameters are finite: only then is this a state to go back to."""
        params = (p.detach() for role in self.cast.roles.values() for p in role.params.values())
        finite = all(bool(part_of(p).isfinite().all()) for p in params)
        return not any(self._failures.values()) and not any_of(not finite, self.device)

    def __iter__(self) -> Iterator[Step]:
        while self.i < self.steps:
            yield self.tick()

    def finish(self) -> nn.Module:
        """Runs to the end and returns the student, in one piece."""
        for _ in self:
            pass
        return self.whole()

    def tick(self) -> Step:
        """One tick: every loss that is due, then one step of every role that was trained."""
        began, progress = time.perf_counter(), self.i / self.steps
        due = [term for term in self.terms if term.due(self.i, progress)]
        roles = sorted({name for term in due for name in term.roles})
        books, last = Books(self, due), None
        buffers = {name: [(b, b.clone()) for b in self.cast.roles[name].buffers] for name in roles}
        for k in range(self.accumulate):
            last = Tick(self.cast, self._place(k, progress), {}, frozenset(roles))
            last.batch = self.source.take(last.size, last.rng("data"))
            with explained() if self._forget else nullcontext():
                books.add(last)
        norms = books.close(roles)
        losses, values = books.means(), torch.stack([*norms.values()]).tolist() if norms else []
        norm = dict(zip(norms, values, strict=True))
        skipped = tuple(name for name in roles if not self._finite(name, norm, due, losses))
        if self.scaling:
            self.scaling.update(overflow=any(self._overflows(name, norm, due, losses) for name in roles))
        put_buffers(pair for name in skipped for pair in buffers[name])  # running statistics saw the bad batch too
        self._update([name for name in roles if name not in skipped], norm, progress, last)
        if self._forget:
            self._forget()
        self.i += 1
        return Step(self.i, losses, norm, skipped, time.perf_counter() - began)

    def _place(self, k: int, progress: float) -> Place:
        size = self.batch // (self.accumulate * self.world)
        first = (self.rank * self.accumulate + k) * size
        return Place(self.seed, self.i, progress, slice(first, first + size), self.batch, self.device)

    def _finite(self, name: str, norms: Mapping[str, float], due: Sequence[Term], losses: Mapping[str, float]) -> bool:
        values = [norms[name], *_losses_of(name, due, losses)]
        finite = all(map(isfinite, values))
        if not self._overflows(name, norms, due, losses):  # with another scale that is finite
            self._failures[name] = 0 if finite else self._failures[name] + 1
        self.skipped += not finite
        if self._failures[name] == PATIENCE:
            raise Diverged(f"{PATIENCE} updates in a row of {name!r} were not finite, the last at tick {self.i}.")
        return finite

    def _overflows(
        self, name: str, norms: Mapping[str, float], due: Sequence[Term], losses: Mapping[str, float]
    ) -> bool:
        """Whether a role's gradient is not finite while its losses are, and a smaller scale may help."""
        if self.scaling is None or self.scaling.least or isfinite(norms[name]):
            return False
        return all(map(isfinite, _losses_of(name, due, losses)))

    @torch.no_grad()
    def _update(self, names: Sequence[str], norms: Mapping[str, float], progress: float, tick: Tick | None) -> None:
        for name in names:
            role = self.cast.roles[name]
            if role.optim.clip is not None and norms[name] > role.optim.clip:
                for grad in gradients(role.params):
                    part_of(grad).mul_(role.optim.clip / norms[name])
            role.step(progress)
        for target in self.cast.targets.values():
            if target.role.name in names:
                target.follow()
        for name in names:
            self._regrow(self.cast.roles[name], tick)
        for role in self.cast.roles.values():
            for p in role.params.values():
                p.grad = None

    def _regrow(self, role: Role, tick: Tick | None) -> None:
        if tick is None or not isinstance(role.module, Grows):
            return
        tick.grads = {name: p.grad for name, p in role.params.items() if p.grad is not None}
        if not (rows := role.module.regrow(tick)):
            return
        role.regrow(rows)
        for target in self.cast.targets.values():
            if target.role is role:
                target.regrow(rows)

    def context(self) -> AbstractContextManager[Any]:
        """The precision of forward passes."""
        return torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs to end with the same bits; of shards, on the first process alone."""
        state = {"i": self.i, "skipped": self.skipped, "failures": dict(self._failures), **self.cast.state_dict()}
        state |= {"scaling": self.scaling.state_dict()} if self.scaling else {}
        return gathered(state) if self._forget else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave, into a run built anew from the same parts."""
        self.cast.load_state_dict(state)
        self.i, self.skipped = int(state["i"]), int(state["skipped"])
        self._failures = {name: int(state["failures"][name]) for name in self._failures}
        if self.scaling:
            self.scaling.load_state_dict(state["scaling"])


def ordered(terms: Sequence[Term], first: Collection[str] = ()) -> tuple[Term, ...]:
    """Terms in the order of their names, those of equal keys once, equal names numbered: sums commute to the bit.

    Losses of the roles that are ``first`` come before the others: students' graphs are gone when critics learn. Then
    those of several roles: what a discriminator sees alone is gone when the critic that it shares a pass with learns.
    """
    unique: dict[object, Term] = {}
    for term in terms:
        unique.setdefault(object() if term.key is None else term.key, term)
    result: dict[str, Term] = {}
    for term in sorted(unique.values(), key=lambda term: (term.name, repr(term.of), repr(term.weight))):
        name = term.name
        while name in result:
            number = name.partition("#")[2]
            name = f"{term.stem}#{int(number or 1) + 1}"
        result[name] = replace(term, name=name)
    return tuple(sorted(result.values(), key=lambda term: (not set(term.roles) & set(first), -len(term.roles))))


def _losses_of(name: str, due: Sequence[Term], losses: Mapping[str, float]) -> Iterator[float]:
    """Of the terms that train a role."""
    return (losses[term.name] for term in due if name in term.roles)


def _names(seed: int | tuple[object, ...]) -> tuple[object, ...]:
    return seed if isinstance(seed, tuple) else (seed,)
