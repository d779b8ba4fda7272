"""From names and files to recipes, problems and finished runs."""

import ast
import dataclasses
import hashlib
import importlib
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any, get_type_hints

import torch

from limbeck import catalogue
from limbeck.engine.recipe import Recipe, Stage
from limbeck.engine.run import Session
from limbeck.engine.settings import find_of_role, override, parse, plain, settings
from limbeck.errors import BadFile, BadSetting, Incompatible, LimbeckError, in_range
from limbeck.problems.problem import Problem
from limbeck.recipes.adapting import suited


def load_problem(
    name: str, given: Mapping[str, Any] | None = None, folder: Path | None = None, *, weights: bool = True
) -> Problem:
    """A built-in problem by name, what a user's file makes with its function ``problem()``, or a folder with a model.

    Args:
        name: of the problem, or a path to a Python file, or to the folder of a pipeline or model.
        given: what a folder needs beside it: ``prompts``, a file, and ``negative``, a text, for a pipeline; ``data``, a
            file or folder, for a model of transformers.
        folder: of a run that has begun on it, with what `Problem.keep` wrote there.
        weights: whether a pipeline's are read; else its networks are on the meta device.

    Raises:
        BadSetting, BadFile: no such problem, a file that makes none, or something given that is missing or not wanted.

    >>> load_problem("mixture2d").name
    'mixture2d'
    """
    path = catalogue.find_problem(name)
    pipeline = (path / "model_index.json").exists() or catalogue.is_id(name)
    takes = ("prompts", "negative") if pipeline else ("data",) if path.is_dir() else ()
    if unwanted := [key for key in given or {} if key not in takes]:
        raise BadSetting(f"{name} takes no --{unwanted[0]}.")
    if pipeline:
        from limbeck.bridges import Pipeline

        return Pipeline(name, **(given or {}), cache=folder and folder / "prompts", weights=weights)
    if path.is_dir():
        if not given:
            raise BadSetting(f"{name} needs --data, a file with a text a line, or labelled images.")
        from limbeck.bridges import on_model

        return on_model(path, **given)
    problem = call(path, function(path, "problem"))
    if not isinstance(problem, Problem):
        raise BadFile(f"{path}: problem() must return a Problem, got a {type(problem).__name__}.")
    wanted = [name for kind in type(problem).__mro__ for name in inspect.get_annotations(kind)]
    if missing := [name for name in wanted if inspect.getattr_static(problem, name, Problem) is Problem]:
        raise BadFile(f"{path}: problem() returned a {type(problem).__name__} without {missing[0]}.")
    return problem


def load_recipe(name: str, problem: Problem, values: Mapping[str, Any] | None = None) -> Recipe:
    """A system's recipe on a problem, or a user's own, with other settings.

    Args:
        name: a system's id, or a path to a Python file with a function ``recipe(problem, …) -> Recipe``.
        problem: what to distil on.
        values: arguments of the recipe's function, and settings by path.

    Raises:
        BadSetting, BadFile, Incompatible: no such recipe or setting, or a problem of the wrong kind.

    >>> load_recipe("dmd2", load_problem("mixture2d"), {"steps": "20"}).stages[0].steps
    20
    """
    path = catalogue.find_recipe(name)
    make, hints = _recipe(path)
    kind = hints["problem"]
    if not isinstance(problem, kind):
        fits = [other for other in catalogue.problems() if isinstance(load_problem(other), kind)]
        got = f"{problem.name} (a {type(problem).__mro__[1].__name__} problem)"
        raise Incompatible(name, need=f"a {_name(kind)} problem", got=got, fit=" or ".join(fits) or None)
    own = arguments(name, values or {})
    recipe = call(path, make, problem, **own)
    if not isinstance(recipe, Recipe):
        raise BadFile(f"{path}: recipe() must return a Recipe, got a {type(recipe).__name__}.")
    others = {path: value for path, value in (values or {}).items() if path.replace("-", "_") not in own}
    return override(suited(recipe, problem), others)


def arguments(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that are arguments of the recipe's function, by its names and of its kinds."""
    make, hints = _recipe(catalogue.find_recipe(name))
    known = set(inspect.signature(make).parameters) - {"problem"}
    given = {path.replace("-", "_"): value for path, value in values.items()}
    return {key: parse(value, hints.get(key, Any), key) for key, value in given.items() if key in known}


def _recipe(path: Path) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The function of a recipe's file, and the kinds of its arguments."""
    make = function(path, "recipe")
    hints = call(path, get_type_hints, make)
    kind = hints.get("problem")
    return make, {**hints, "problem": kind if isinstance(kind, type | UnionType) else Problem}


def _name(kind: type | UnionType) -> str:
    return kind.__name__ if isinstance(kind, type) else " or ".join(_name(one) for one in kind.__args__)


def default_problem(name: str) -> Problem:
    """The problem that a system's claim is measured on."""
    kind = _recipe(catalogue.find_recipe(name))[1]["problem"]
    for other in catalogue.problems():
        if isinstance(problem := load_problem(other), kind):
            on = load_recipe(name, problem).claim.on
            return problem if on == other else load_problem(on)
    raise Incompatible(name, need=f"a {_name(kind)} problem", got="none that is built in")


def function(path: Path, name: str) -> Callable[..., Any]:
    """A function of a recipe's or problem's file."""
    function = getattr(_module(path), name, None)
    if not callable(function):
        raise BadFile(f"{path} has no function {name}().")
    return function


def _module(path: Path) -> ModuleType:
    if path.is_relative_to(catalogue.PACKAGE):
        return importlib.import_module(".".join(path.relative_to(catalogue.PACKAGE.parent).with_suffix("").parts))
    source = path.read_bytes()
    where = str(path.resolve())
    name = f"_limbeck_{path.stem}_{hashlib.sha256(where.encode() + source).hexdigest()[:16]}"
    if name not in sys.modules:  # a file with both a recipe and a problem is one module
        module = ModuleType(name)
        module.__file__ = where
        sys.modules[name] = module
        try:
            call(path, lambda: exec(compile(source, where, "exec", dont_inherit=True), vars(module)))
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def call(path: Path, function: Callable[..., Any], *args: Any, **settings: Any) -> Any:
    """Calls something from a user's file.

    Raises:
        BadFile: for whatever it does wrong, with the line of the file; what Limbeck itself complains of stays.
    """
    try:
        return function(*args, **settings)
    except LimbeckError:
        raise
    except (Exception, SystemExit) as error:
        where = str(path.resolve())
        lines = [f":{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__) if frame.filename == where]
        text = " ".join(str(error).split())
        raise BadFile(f"{path}{''.join(lines[-1:])} failed with {type(error).__name__}: {text}.") from error


def sources_of(name: str, recipe: Recipe) -> list[str]:
    """What a recipe is made of: its own file, those of its objectives and students, and what these import from them.

    Of a file that recipes share only the definitions in use count, as ``recipes/claims.py::against,transport``.
    """
    own = catalogue.find_recipe(name)
    found = {own}

    def visit(part: Any) -> None:
        module = sys.modules.get(getattr(part, "__module__", "") or type(part).__module__)
        file = Path(getattr(module, "__file__", None) or "none")
        if any(file.is_relative_to(catalogue.PACKAGE / room) for room in ("objectives", "students")):
            found.add(file)
        if dataclasses.is_dataclass(part) and not isinstance(part, type):
            for field in dataclasses.fields(part):
                value = getattr(part, field.name)
                for inner in value if isinstance(value, tuple) else (value,):
                    if dataclasses.is_dataclass(inner) or callable(inner):
                        visit(inner)

    for stage in recipe.stages:
        visit(stage)
        if isinstance(stage, Stage):
            visit(getattr(stage.student, "__self__", stage.student))
    used: dict[Path, set[str] | None] = {}
    for path in found:
        _use(used, path, None)
    names = {path: "" if part is None else "::" + ",".join(sorted(part)) for path, part in used.items()}
    inside = (path for path in used if path.is_relative_to(catalogue.PACKAGE))
    return sorted(f"{path.relative_to(catalogue.PACKAGE)}{names[path]}" for path in inside)


def _use(used: dict[Path, set[str] | None], path: Path, names: set[str] | None) -> None:
    """Notes that definitions of a file are in use, or all of it, and what they use in turn."""
    tree = ast.parse(path.read_text())
    if names is not None:
        names = catalogue.needed(tree, names)
        if path in used and ((known := used[path]) is None or names <= known):
            return
        names |= used.get(path) or set()
    elif path in used and used[path] is None:
        return
    used[path] = names
    nodes = tree.body if names is None else catalogue.chosen(tree, names)
    said = {node.id for top in nodes for node in ast.walk(top) if isinstance(node, ast.Name)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("limbeck."):
            continue
        for name in {alias.name for alias in node.names if names is None or (alias.asname or alias.name) in said}:
            value = getattr(importlib.import_module(node.module or ""), name, None)
            module = sys.modules.get(getattr(value, "__module__", None) or node.module or "")
            other = Path(getattr(module, "__file__", None) or "none")
            room = next((room for room in _ROOMS if other.is_relative_to(catalogue.PACKAGE / room)), None)
            if room and other.suffix == ".py" and other.name != "__init__.py":
                _use(used, other, None if room in ("objectives", "students") else {name})


_ROOMS = ("objectives", "students", "recipes", "teachers", "diffusion", "evaluate")
"""What evidence depends on by what it imports; of the last four the definitions in use."""


def describe(
    system: str,
    problem: str,
    seed: int,
    values: Mapping[str, Any],
    recipe: Recipe,
    threads: int,
    given: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What ``recipe.json`` holds: enough to run it again."""
    from limbeck import __version__

    where = {"system": _portable(system), "problem": _portable(problem), "seed": seed, "threads": threads}
    if given:
        paths = ("prompts", "data")
        where["given"] = {key: str(Path(v).resolve()) if key in paths else v for key, v in given.items()}
    own = arguments(system, values)
    return {"limbeck": __version__, **where, "arguments": own, "settings": plain(recipe)}


def _portable(name: str) -> str:
    if catalogue.is_id(name):
        return name
    return str(Path(name).resolve()) if name.endswith(".py") or "/" in name or Path(name).is_dir() else name


def read_description(path: Path) -> dict[str, Any]:
    """A ``recipe.json``, checked.

    Raises:
        BadFile: missing, damaged, or not one.
    """
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        raise BadFile(f"{path} does not exist.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadFile(f"{path} is not a readable recipe: {error}.") from None
    wanted = {"system": str, "problem": str, "seed": int, "threads": int, "arguments": dict, "settings": dict}
    if not isinstance(record, dict) or not all(isinstance(record.get(k), t) for k, t in wanted.items()):
        raise BadFile(f"{path} is not a recipe: it needs {', '.join(wanted)}.")
    in_range("threads", record["threads"], 1)
    given = record.setdefault("given", {})
    if not isinstance(given, dict) or not all(isinstance(v, str) for v in given.values()):
        raise BadFile(f"{path} is not a recipe: what its problem is given must be texts by name.")
    return record


def device_of(record: Mapping[str, Any]) -> torch.device:
    """Where a run's networks are.

    Raises:
        BadSetting: a device that this machine does not have.

    >>> device_of({})
    device(type='cpu')
    """
    name = str(record.get("device", "cpu"))
    try:
        torch.zeros(1, device=name).cpu()
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:  # of an unknown name, and of a torch built without it
        raise BadSetting(f"device must be one that this machine has, such as cpu, got {name}.") from error


def rebuild(record: Mapping[str, Any], problem: Problem) -> Recipe:
    """The recipe that a ``recipe.json`` describes, on its problem, which then knows how it is asked."""
    recipe = load_recipe(record["system"], problem, record["arguments"])
    known = settings(recipe)
    if unknown := sorted(x for x in record["settings"] if x not in known and not find_of_role(known, x)):
        raise BadSetting(f"{record['system']} has no setting {unknown[0]!r} any more.")
    recipe = override(recipe, record["settings"])
    problem.asked_by(recipe)
    return recipe


def vary(record: Mapping[str, Any], problem: Problem, values: Mapping[str, Any]) -> tuple[dict[str, Any], Recipe]:
    """A recorded recipe with other values: all that it was given then and now, and the recipe."""
    name, own = record["system"], {**record["arguments"], **arguments(record["system"], values)}
    before = json.loads(json.dumps(plain(load_recipe(name, problem, record["arguments"]))))
    changed = {path: v for path, v in record["settings"].items() if path not in before or v != before[path]}
    recipe = override(load_recipe(name, problem, own), changed)
    now = {path: v for path, v in values.items() if path not in own or path in settings(recipe)}
    return {**own, **values}, override(recipe, now)


def load_run(folder: Path) -> Session:
    """A finished run.

    Raises:
        BadFile: no run, or one that has not finished.
    """
    if not folder.is_dir():
        raise BadFile(f"{folder} is not a run's folder.")
    record = read_description(folder / "recipe.json")
    problem = load_problem(record["problem"], record["given"], folder)
    recipe = rebuild(record, problem)
    said: list[str] = []
    device = device_of(record) if torch.cuda.is_available() else None
    session = Session(recipe, problem, folder, seed=record["seed"], device=device, say=said.append)
    if not session.finished:
        why = f"{folder} has not finished" + "".join(f": {text.rstrip('.')}" for text in said[:1])
        raise BadFile(f"{why}; go on with `limbeck distill {folder}/recipe.json --out {folder} --resume`.")
    return session
