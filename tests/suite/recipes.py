"""Every recipe file on every built-in problem, made small enough to run to its end in a moment."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

from limbeck import catalogue
from limbeck.engine import Prior, Recipe, Session, Stage
from limbeck.errors import Incompatible
from limbeck.loading import load_problem, load_recipe
from limbeck.problems.problem import Generative, Problem

TICKS, ROWS = 2, 8

SYSTEMS = {system.id: system.path for system in catalogue.systems() if system.path.exists()}
FILES = sorted(path for path in catalogue.RECIPES.glob("*/*.py") if not path.name.startswith("_"))


@cache
def problem(name: str) -> Problem:
    """A built-in problem whose teacher samples in one pass, so that stages without training are quick."""
    made = load_problem(name)
    if isinstance(made, Generative):
        made.steps = 1
    return made


def small(system: str, name: str) -> Recipe:
    """The system's recipe with a few ticks of a few rows in every stage."""
    recipe = load_recipe(system, problem(name))
    stages = (replace(s, steps=TICKS, batch=ROWS, accumulate=1) if isinstance(s, Stage) else s for s in recipe.stages)
    return replace(recipe, stages=tuple(stages))


@cache
def fit(system: str, name: str) -> str:
    """``fits``, or the sentence with which a recipe is refused on a problem before anything runs."""
    try:
        first = small(system, name).stages[0]
        if isinstance(first, Stage):
            first.start(problem(name), Prior(Path()), seed=0)
    except Incompatible as refusal:
        return str(refusal)
    except Exception as error:
        return f"crashed: {type(error).__name__}: {error}"
    return "fits"


def fits() -> Iterator[tuple[str, str]]:
    """Systems and the problems that they run on."""
    yield from ((s, p) for s in SYSTEMS for p in catalogue.problems() if fit(s, p) == "fits")


def session(system: str, name: str, folder: Path) -> Session:
    """A new run of a small recipe, or the one that the folder holds."""
    return Session(small(system, name), problem(name), folder, seed=1, checkpoint_every=1)
