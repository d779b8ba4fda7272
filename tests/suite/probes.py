"""Objectives that only the suite needs: ragged weights, coupled batches, failures on purpose, and what a tick shows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.diffusion import Karras
from limbeck.engine import Cast, Linear, Loss, Objective, Role, Run, Term, Tick
from limbeck.engine.books import Books
from limbeck.rng import Rng
from limbeck.students import FewStep


@dataclass(frozen=True, kw_only=True)
class Ragged(Objective):
    """Weighted and plain losses, through the draw and around it, for the student and for a role of their own.

    Every fourth part of a tick's rows in turn has no weight at all.
    """

    empty: bool = False

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        student = cast.need("student", FewStep, by=self)
        judge = cast.role("judge", lambda: nn.Linear(2, 1).to(next(student.parameters()).dtype), spec=self).module

        def weight(tick: Tick, name: str, part: int) -> Tensor:
            rows = torch.arange(tick.place.total)[tick.place.part]
            u = tick.rng((self, name)).uniform(tick.size)
            kept = (rows * 4 // tick.place.total != part) & (u > 0.3)
            return u * kept * (not self.empty)

        def direct(tick: Tick) -> Loss:
            x0 = student.first(tick.batch["noise"], tick.batch["cond"])
            return Loss(squares(x0, tick.batch["x"]), weight(tick, "direct", 0))

        def drawn(tick: Tick) -> Loss:
            return Loss(squares(tick.draw().x, torch.tensor(1.0)), weight(tick, "drawn", 1))

        def noised(tick: Tick) -> Loss:
            seen = tick.noised(Karras(hi=0.5))
            return Loss(squares(seen.x_t, seen.eps), weight(tick, "noised", 2))

        def plain(tick: Tick) -> Loss:
            return Loss(squares(tick.noised(Karras(hi=0.5)).x_t.tanh(), tick.draw().x))

        def score(tick: Tick) -> Loss:
            return Loss(nn.functional.softplus(judge(tick.draw().x)[:, 0]), weight(tick, "judge", 3))

        losses = {"direct": direct, "drawn": drawn, "plain": plain}
        return (
            *(Term(name, "student", loss, of=self) for name, loss in losses.items()),
            Term("noised", "student", noised, weight=Linear(first=0.5, last=0.1), of=self),
            Term("judge", "judge", score, of=self),
        )


def squares(a: Tensor, b: Tensor) -> Tensor:
    """‖a − b‖² over each example, [B]."""
    return ((a - b) ** 2).flatten(1).sum(1)


@dataclass(frozen=True, kw_only=True)
class Weighted(Objective):
    """Each example's loss and weight is the number of its row, and its gradient by the first coordinate is 1."""

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        def loss(tick: Tick) -> Loss:
            x, row = tick.draw().x[:, 0], torch.arange(tick.place.total).double()[tick.place.part]
            return Loss(x - x.detach() + row, row)

        return (Term("weighted", "student", loss, of=self),)


@dataclass(frozen=True, kw_only=True)
class Coupled(Objective):
    """The mean of the batch's samples at zero: a loss of the whole batch."""

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        def loss(tick: Tick) -> Loss:
            return Loss((tick.draw().x.mean(0) ** 2).sum())

        return (Term("coupled", "student", loss, coupled=True, of=self),)


@dataclass(frozen=True, kw_only=True)
class Pull(Objective):
    """Draws one student's samples to a point; not finite at chosen ticks. A judge learns beside it."""

    who: str = "student"
    to: float = 1.0
    broken: frozenset[int] = frozenset()

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        judge = cast.role("judge", lambda: nn.Linear(2, 1)).module

        def pull(tick: Tick) -> Loss:
            factor = float("nan") if tick.i in self.broken else 1.0
            return Loss(squares(tick.draw(self.who).x, torch.tensor(self.to)) * factor)

        def learn(tick: Tick) -> Loss:
            return Loss(judge(tick.draw(self.who).x)[:, 0] ** 2)

        return Term(f"pull {self.who}", self.who, pull, of=self), Term("learn", "judge", learn, key="judge", of=self)


@dataclass(frozen=True, kw_only=True)
class Watch(Objective):
    """Another objective, with a note of what each of its losses saw; the losses are its own."""

    objective: Objective
    note: Callable[[Term, Tick], object]
    notes: list[Any] = field(default_factory=list, compare=False)

    def check(self, cast: Cast) -> None:
        self.objective.check(cast)

    def terms(self, cast: Cast) -> tuple[Term, ...]:
        return tuple(replace(term, loss=self._watched(term)) for term in self.objective.terms(cast))

    def _watched(self, term: Term) -> Callable[[Tick], Loss]:
        def loss(tick: Tick) -> Loss:
            self.notes.append(self.note(term, tick))
            return term.loss(tick)

        return loss


Grads = dict[str, dict[str, Tensor]]


@contextmanager
def gradients() -> Iterator[list[Grads]]:
    """Gradients by role and parameter at every tick's optimiser steps, before clipping changes them."""
    seen: list[Grads] = []
    close = Books.close

    def spied(books: Books, roles: Any) -> Any:
        norms = close(books, roles)
        every = books.run.cast.roles
        seen.append({name: clones(role) for name, role in every.items() if clones(role)})
        return norms

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Books, "close", spied)
        yield seen


def clones(role: Role) -> dict[str, Tensor]:
    """Copies of the gradients that are there."""
    return {name: p.grad.clone() for name, p in role.params.items() if p.grad is not None}


def flags(run: Run) -> dict[str, bool]:
    """Whether each parameter of each role wants a gradient."""
    return {f"{n}.{k}": p.requires_grad for n, role in run.cast.roles.items() for k, p in role.params.items()}


def lively(run: Run) -> Run:
    """The run with every term due at every tick, and roles that were clones moved a little.

    A critic starts as its teacher, and as long as the two agree many a student's gradient is 0.
    """
    run.terms = tuple(replace(term, every=1) for term in run.terms)
    for name, role in run.cast.roles.items():
        if name not in run.cast.students:
            for key, p in role.params.items():
                p.data.add_(0.1 * Rng(("lively", name, key)).normal(*p.shape, dtype=p.dtype))
    return run
