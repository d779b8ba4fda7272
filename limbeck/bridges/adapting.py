"""Recipes as they run on a model of transformers: a smaller one learns, token by token where it is of language."""

from dataclasses import replace

from limbeck.bridges.smaller import Smaller
from limbeck.engine.objective import Objective, Scaled, Sum, parts_of
from limbeck.engine.optim import Adam
from limbeck.engine.recipe import Recipe, Stage
from limbeck.engine.schedule import Cosine
from limbeck.errors import Incompatible
from limbeck.objectives import CrossEntropy, OnFeatures, OnLogits, PerToken
from limbeck.recipes.parts import own_network

OPTIM = Adam(lr=5e-4, schedule=Cosine(warmup=0.05), clip=1.0)
"""How those learn who were trained before."""


def adapted(recipe: Recipe, *, tokens: bool) -> Recipe:
    """The recipe with a `Smaller` student where it takes the problem's own, and what suits such: `OPTIM`, 32 rows.

    Args:
        recipe: of classifiers.
        tokens: whether every token is classified; see `PerToken`.

    Raises:
        Incompatible: losses that are neither of logits nor of pairs of features, where there are tokens.
    """
    stages = tuple(_adapted(stage, tokens) if isinstance(stage, Stage) else stage for stage in recipe.stages)
    return replace(recipe, stages=stages)


def _adapted(stage: Stage, tokens: bool) -> Stage:
    student = Smaller() if stage.student is own_network else stage.student
    objective = per_token(stage.objective) if tokens else stage.objective
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


__all__ = ["OPTIM", "adapted", "per_token"]
