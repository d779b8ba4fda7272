"""Figures of any student: what puts out logits among other things is asked for them, and language token by token."""

from typing import Any

from torch import Tensor, nn

from limbeck.engine.data import Source
from limbeck.evaluate import comparison
from limbeck.evaluate.language import judge_language
from limbeck.problems.problem import Classification, Language, Problem, home_of
from limbeck.tree import moved


class Logits(nn.Module):
    """The logits in what a network puts out, as models of transformers have them; of any other all of it.

    Args:
        net: maps inputs to outputs.

    >>> import torch
    >>> Logits(nn.Linear(4, 3))(torch.zeros(2, 4)).shape
    torch.Size([2, 3])
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.training = net, net.training

    def forward(self, x: Tensor) -> Any:
        """Logits [B, C] of inputs [B, …]."""
        out = self.net(x)
        return getattr(out, "logits", out)


class _Plain(Classification):
    """A problem whose networks put out logits alone."""

    def __init__(self, of: Classification):
        self.of, self.name, self.classes = of, of.name, of.classes
        self.train, self.heldout = of.train, moved(of.heldout, home_of(of.teacher))
        self._teacher = Logits(of.teacher)

    @property
    def teacher(self) -> nn.Module:
        return self._teacher

    @property
    def source(self) -> Source:
        return self.of.source

    def network(self) -> nn.Module:
        return Logits(self.of.network())


def figures_of(student: nn.Module, problem: Problem, **settings: int) -> dict[str, float]:
    """Student and teacher before the same judge, as `limbeck.evaluate.evaluate` has them.

    Args:
        student: of a run.
        problem: what it was made on.
        settings: ``n`` samples and ``seed``, where there are any.

    Raises:
        Incompatible: a student that the problem cannot judge.
    """
    if isinstance(problem, Language):
        theirs, ours = (judge_language(model, problem) for model in (problem.teacher, student))
        return {**ours, **{f"{name}_teacher": value for name, value in theirs.items()}}
    if isinstance(problem, Classification):
        return comparison.evaluate(Logits(student), _Plain(problem), **settings)
    return comparison.evaluate(student, problem, **settings)


__all__ = ["Logits", "figures_of"]
