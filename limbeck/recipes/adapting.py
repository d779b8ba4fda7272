"""Recipes as they run on a problem that brings its own student, token by token where it is one of language."""

from dataclasses import replace

from limbeck.engine.objective import Objective, Scaled, Sum, parts_of
from limbeck.engine.optim import Adam
from limbeck.engine.recipe import Recipe, Stage
from limbeck.engine.schedule import Cosine
from limbeck.errors import Incompatible
from limbeck.objectives import CrossEntropy, OnFeatures, OnLogits, PerToken
from limbeck.problems.problem import Language, Problem
from limbeck.recipes.parts import own_network

OPTIM = Adam(lr=5e-4, schedule=Cosine(warmup=0.05), clip=1.0)
"""How those learn who were trained before."""


def suited(recipe: Recipe, problem: Problem) -> Recipe:
    """The recipe as it is, or with the `Problem.student` where it takes the problem's own network.

    Then with what suits such, `OPTIM` and 32 rows; of a language model every token is classified, see `PerToken`.

    Raises:
        Incompatible: losses that are neither of logits nor of pairs of features, where there are tokens.
    """
    if problem.student is None:
        return recipe
    stages = tuple(_suited(stage, problem) if isinstance(stage, Stage) else stage for stage in recipe.stages)
    return replace(recipe, stages=stages)


def _suited(stage: Stage, problem: Problem) -> Stage:
    student = problem.student if stage.student is own_network else stage.student
    assert student is not None
    objective = per_token(stage.objective) if isinstance(problem, Language) else stage.objective
    optim = {**stage.optim, "default": OPTIM}
    return replace(stage, student=student, objective=objective, optim=optim, batch=32)


def per_token(objective: Objective) -> Objective:
    """An objective of classifiers for a language model: losses of logits are taken token by token."""
    if isinstance(objective, Sum):
        return Sum(parts=tuple(map(per_token, parts_of(objective))))
    if isinstance(objective, Scaled):
        return replace(objective, objective=per_token(objective.objective))
    if isinstance(objective, OnLogits | CrossEntropy):
        return PerToken(of=objective)
    if isinstance(objective, OnFeatures | PerToken):
        return objective
    got = f"{type(objective).__name__}"
    raise Incompatible("a language model", need="losses of logits or of pairs of features", got=got, fit="kd")


__all__ = ["OPTIM", "per_token", "suited"]
