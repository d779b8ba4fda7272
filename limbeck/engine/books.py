"""The books of one tick: every loss, its gradients through every pass, and sums over micro-batches and processes."""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from limbeck.engine.objective import Loss, Term
from limbeck.engine.optim import gradient_norm
from limbeck.engine.ranks import summed
from limbeck.engine.schedule import value_at
from limbeck.engine.tick import Tick
from limbeck.errors import Incompatible

if TYPE_CHECKING:
    from limbeck.engine.loop import Run


class Books:
    """Gradients and means of one tick, exact however the batch is cut.

    A loss without weights is divided by the tick's rows at once. The denominator of a weighted loss is known only
    after the last micro-batch, so its gradients are kept apart until then.
    """

    def __init__(self, run: "Run", due: Sequence[Term]):
        self.run, self.due, self.parts = run, due, run.accumulate * run.world
        self.sums: dict[str, list[Tensor]] = {term.name: [] for term in due}
        self.counts: dict[str, list[Tensor]] = {term.name: [] for term in due}
        self.apart: dict[str, dict[Tensor, Tensor]] = {}

    def add(self, tick: Tick) -> None:
        """All losses of one micro-batch, and one pass of their gradients through each student's samples."""
        self._ahead(tick)
        for k, term in enumerate(self.due):
            tick.trains, tick.asked = term.roles, {}
            with self.run.cast.training(term.roles):
                for part, loss in enumerate(self._parts(term, tick)):
                    self._backward(term, loss, tick, first=part == 0)
            self.run.asked[term.name] = tick.asked
            if k == len(self.due) - 1:
                tick.forget()
            self._through(tick, later={role for other in self.due[k + 1 :] for role in other.roles})

    def _ahead(self, tick: Tick) -> None:
        """Passes without a graph that these losses made last time: now, while no graph takes memory beside them."""
        asked: dict[str, bool] = {}
        for term in self.due:
            asked = self.run.asked.get(term.name, {}) | asked
        for who, cast in asked.items():
            if who not in tick.due:
                with self.run.context() if cast else nullcontext():
                    tick.answer(who)

    def _parts(self, term: Term, tick: Tick) -> Iterator[Loss]:
        """A term's loss, or the summands of it, each made when the one before is done with."""
        with tick.seeded(term.stem), self.run.context():
            made = term.loss(tick)
        if isinstance(made, Loss):
            yield made
            return
        for part in itertools.count():
            with tick.seeded((term.stem, part)), self.run.context():
                loss = next(made, None)
            if loss is None:
                return
            yield loss

    def _backward(self, term: Term, loss: Loss, tick: Tick, *, first: bool) -> None:
        shapes = [tuple(x.shape) for x in (loss.value, loss.weight) if x is not None]
        wanted = () if term.coupled else (tick.size,)
        if any(shape != wanted for shape in shapes):
            need = f"a loss of shape {wanted}{' since it is coupled' if term.coupled else ', one for each example'}"
            raise Incompatible(term.name, need=need, got=" with weights ".join(map(str, shapes)))
        value = loss.value.float() if loss.value.dtype in (torch.float16, torch.bfloat16) else loss.value
        total = value.sum() if loss.weight is None else (value * loss.weight).sum()
        rows = torch.tensor(value.numel(), dtype=value.dtype, device=value.device)
        count = rows if loss.weight is None else loss.weight.sum().to(value)
        self.sums[term.name].append(total.detach())
        if first:  # all summands have the same rows
            self.counts[term.name].append(count)
        if not total.requires_grad:
            got = "one without gradient"
            raise Incompatible(term.name, need=f"a loss that depends on {' and '.join(term.roles)}", got=got)
        total = total * value_at(term.weight, tick.progress)
        if self.run.scaling:
            total = total * self.run.scaling.scale
        if loss.weight is None or self.parts == 1:
            (total / (_divisor(count) if loss.weight is not None else value.numel() * self.parts)).backward()
        else:
            self._keep_apart(term.name, total, tick)

    def _keep_apart(self, name: str, total: Tensor, tick: Tick) -> None:
        params = [p for role in tick.due for p in self.run.cast.roles[role].params.values()]
        leaves = [leaf for cut in tick.cuts for leaf in cut.leaves]
        before = [(x, x.grad) for x in (*params, *leaves)]
        for x, _ in before:
            x.grad = None
        total.backward()
        self._through(tick, keep=True)
        own = self.apart.setdefault(name, {})
        for p in params:
            if p.grad is not None:
                own[p] = own[p] + p.grad if p in own else p.grad
        for x, grad in before:
            x.grad = grad

    def _through(self, tick: Tick, *, later: Collection[str] = (), keep: bool = False) -> None:
        """Through every pass whose roles no ``later`` loss trains, so that its graph is freed."""
        for cut in tick.cuts:
            if not set(cut.roles) & set(later):
                with self.run.cast.training(cut.roles):
                    cut.back(keep=keep)

    def close(self, roles: Sequence[str]) -> dict[str, Tensor]:
        """Sums over micro-batches and ranks; afterwards ``.grad`` is the tick's gradient. Returns norms by role."""
        cast = self.run.cast
        for name, own in self.apart.items():
            count = _divisor(summed(torch.stack(self.counts[name]).sum()))
            for p, grad in own.items():
                p.grad = grad / count if p.grad is None else p.grad + grad / count
        if self.run.world > 1:
            for name in roles:
                for grad in gradients(cast.roles[name].params):
                    summed(grad)
        if self.run.scaling:
            for name in roles:
                self.run.scaling.undo(gradients(cast.roles[name].params))
        return {name: gradient_norm(cast.roles[name].params.values()) for name in roles}

    def means(self) -> dict[str, float]:
        """The mean of each loss over the tick."""
        pairs = [torch.stack([torch.stack(self.sums[n]).sum(), torch.stack(self.counts[n]).sum()]) for n in self.sums]
        totals = summed(torch.stack(pairs)).tolist() if pairs else []
        return {name: total / count if count else 0.0 for name, (total, count) in zip(self.sums, totals, strict=True)}


def gradients(params: Mapping[str, Tensor]) -> list[Tensor]:
    """The gradients that are there."""
    return [p.grad for p in params.values() if p.grad is not None]


def _divisor(count: Tensor) -> Tensor:
    """A sum of weights; 1 where no example has any, so that nothing is learned then."""
    return torch.where(count > 0, count, 1)


__all__ = ["Books", "gradients"]
