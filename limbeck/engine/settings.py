"""The settings of a recipe by dotted path: listed, overridden with types checked, and read back from a run."""

import ast
import dataclasses
import difflib
import re
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from limbeck.engine.objective import Objective, Scaled, Sum
from limbeck.engine.recipe import Make, Recipe, Stage
from limbeck.errors import BadSetting

Simple = bool | int | float | str | None | tuple[Any, ...]
_HIDDEN = {"name", "paper", "claim"}


def settings(part: Any) -> dict[str, Any]:
    """Every setting below a recipe, stage or objective by dotted path, in order.

    >>> from limbeck import KD
    >>> settings(KD())
    {'student': 'student', 'teacher': 'teacher', 'temperature': 4.0, 'alpha': 0.9}
    """
    found: dict[str, Any] = {}
    for name, (value, kind) in _children(part).items():
        if kind is not None and not isinstance(value, Sum | Scaled):
            found[name] = value
        found |= {f"{name}.{path}": inner for path, inner in settings(value).items()}
    return found


def plain(part: Any) -> dict[str, Simple]:
    """The shortest set of settings that fixes all others, with parts as text; what ``recipe.json`` holds."""
    found: dict[str, Simple] = {}
    for path, value in settings(part).items():
        if isinstance(value, Objective) or any(path.startswith(f"{above}.") for above in found):
            continue
        text = repr(value) if dataclasses.is_dataclass(value) else value
        if _is_simple(text):  # what is not, such as a function, comes from the recipe alone
            found[path] = text
    return found


def _is_simple(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_simple, value))
    return value is None or isinstance(value, bool | int | float | str)


def override(part: Any, values: Mapping[str, Any]) -> Any:
    """A copy with other settings. A path may leave out levels: it then means all settings of that name, if equal.

    What is set by role, with ``default`` for those not named, can be set for any role: it starts as the default is.

    Args:
        part: a recipe, stage or objective.
        values: by path, in any order; text is read as a number, None, a tuple, or a part such as ``Uniform(lo=0.1)``.

    Raises:
        BadSetting: a path that does not exist or is ambiguous, a value of the wrong type or out of range.

    >>> from limbeck import DMD, GAN
    >>> override(DMD() + 0.1 * GAN(critic_steps=5), {"critic-steps": "3"}).parts[0].critic_steps
    3
    >>> from limbeck.engine import Stage
    >>> stage = Stage(name="s", steps=1, objective=DMD(), student=lambda problem, prior: None)
    >>> stage = override(stage, {"memory.teacher.frozen": "bf16", "memory.default.again": "auto"})
    >>> stage.memory["default"].frozen, stage.memory["teacher"].frozen, stage.memory["teacher"].again
    (None, 'bf16', ('auto',))
    >>> override(DMD(), {"critic-stepz": 3})
    Traceback (most recent call last):
    limbeck.errors.BadSetting: there is no setting 'critic-stepz'; did you mean critic_steps?
    """
    left: dict[str, BadSetting] = {}
    for path, value in values.items():
        try:
            part = _put_all(part, fitting(settings(part), path), value)
        except BadSetting as error:  # it may fit once another setting has changed
            left[path] = error
    if len(left) == len(values) > 0:
        path, error = next(iter(left.items()))
        if not (fresh := find_of_role(settings(part), path)):
            raise error
        part = _put_all(part, fresh, values[path])
        del left[path]
    return override(part, {path: values[path] for path in left}) if left else part


def _put_all(part: Any, paths: Sequence[str], value: Any) -> Any:
    for full in paths:
        part = _put(part, full.split("."), value, full)
    return part


def fitting(known: Mapping[str, Any], path: str) -> list[str]:
    """The full paths that a path means."""
    wanted = path.replace("-", "_").split(".")
    exact = ".".join(wanted)
    if exact in known:
        return [exact]
    matches = [full for full in known if _abbreviates(wanted, full.split("."))]
    if not matches:
        endings = {".".join(full.split(".")[i:]): None for full in known for i in range(full.count(".") + 1)}
        for ending in [*endings]:  # what is set for all can be set for one
            if len(names := ending.split(".")) == len(wanted) and "default" in names[1:]:
                role = names.index("default", 1)
                endings[".".join([*names[:role], wanted[role], *names[role + 1 :]])] = None
        close = difflib.get_close_matches(exact, endings, 1, 0.5)
        raise BadSetting(f"there is no setting {path!r}" + (f"; did you mean {close[0]}?" if close else "."))
    if len({repr(known[full]) for full in matches}) > 1:
        options = ", ".join(f"{full} = {known[full]}" for full in matches)
        raise BadSetting(f"{path!r} could mean several settings: {options}.")
    return matches


def find_of_role(known: Mapping[str, Any], path: str) -> list[str]:
    """The full paths that a path means of a role that has only the ``default`` yet; none if there are no such.

    >>> from limbeck import Adam
    >>> find_of_role({"optim.default": Adam(), "optim.default.lr": 1e-3}, "optim.critic.lr")
    ['optim.critic.lr']
    """
    wanted, found = path.replace("-", "_").split("."), list[str]()
    for k in range(1, len(wanted)):
        like = [*wanted[:k], "default", *wanted[k + 1 :]]
        for full in (path.split(".") for path in known):
            start = len(full) - len(like)
            if start >= 0 and full[start + k - 1 :] == like[k - 1 :] and _abbreviates(like, full):
                found.append(".".join([*full[: start + k], *wanted[k:]]))
    return found


def _abbreviates(short: list[str], full: list[str]) -> bool:
    rest = iter(full)
    return short[-1] == full[-1] and all(any(name == level for level in rest) for name in short)


def _children(part: Any) -> dict[str, tuple[Any, Any]]:
    """(value, annotation) of each setting directly below a part; annotation None where only its own parts are set."""
    if isinstance(part, Recipe):
        stages = [stage for stage in part.stages if isinstance(stage, Stage)]
        return _children(stages[0]) if len(stages) == 1 else {stage.name: (stage, None) for stage in stages}
    if isinstance(part, Mapping):
        return {name: (value, type(value).__mro__[1]) for name, value in part.items()}
    if isinstance(part, Sum):
        return {name: (inner, None) for name, inner in zip(_labels(part), part.parts, strict=True)}
    if isinstance(part, Scaled):
        return {**_children(part.objective), "weight": (part.weight, get_type_hints(Scaled)["weight"])}
    if not dataclasses.is_dataclass(part):
        return {}
    hints = get_type_hints(type(part))
    fields = [f.name for f in dataclasses.fields(part) if not (f.name in _HIDDEN and isinstance(part, Stage | Make))]
    fields = [name for name in fields if not callable(value := getattr(part, name)) or dataclasses.is_dataclass(value)]
    makers = ("student", "teacher", "data") if isinstance(part, Stage) else ()
    parts_only = {name for name in fields if name in makers or isinstance(getattr(part, name), Mapping | Objective)}
    kinds = {name: None if name in parts_only else hints[name] for name in fields}
    return {name: (getattr(part, name), kinds[name]) for name in fields}


def _labels(part: Sum) -> list[str]:
    names = [type(p.objective if isinstance(p, Scaled) else p).__name__.lower() for p in part.parts]
    return [name + (str(names[:i].count(name) + 1) if name in names[:i] else "") for i, name in enumerate(names)]


def _put(part: Any, path: list[str], value: Any, full: str) -> Any:
    name, rest = path[0], path[1:]
    if isinstance(part, Recipe):
        stages = [stage for stage in part.stages if isinstance(stage, Stage)]
        chosen = stages[0] if len(stages) == 1 else next(stage for stage in stages if stage.name == name)
        changed = _put(chosen, path if len(stages) == 1 else rest, value, full)
        return dataclasses.replace(part, stages=tuple(changed if s is chosen else s for s in part.stages))
    if isinstance(part, Scaled) and name != "weight":
        return dataclasses.replace(part, objective=_put(part.objective, path, value, full))
    if isinstance(part, Sum):
        parts = zip(_labels(part), part.parts, strict=True)
        return Sum(parts=tuple(_put(p, rest, value, full) if label == name else p for label, p in parts))
    below = _children(part)
    inner, kind = below[name] if name in below else below["default"]
    new = _put(inner, rest, value, full) if rest else parse(value, kind, full, inner)
    return {**part, name: new} if isinstance(part, Mapping) else dataclasses.replace(part, **{name: new})


def parse(value: Any, kind: Any, path: str, now: Any = None) -> Any:
    """A value of the annotated kind, from text or as it is; parts are looked up beside the one that is there ``now``.

    >>> parse("1e-4", float, "lr"), parse("none", float | None, "clip"), parse("3", tuple[int, ...] | int, "n")
    (0.0001, None, 3)
    >>> parse("to_q,to_v", tuple[str, ...], "targets")
    ('to_q', 'to_v')
    >>> parse("many", int, "steps")
    Traceback (most recent call last):
    limbeck.errors.BadSetting: steps must be int, got 'many'.
    """
    if isinstance(value, str) and value == repr(now):
        return now
    read = _read(value, path, type(now).__module__) if isinstance(value, str) else value
    words = tuple(word.strip() for word in value.split(",")) if isinstance(value, str) else value
    for candidate in (read, value, words):
        fitted = _fit(candidate, kind)
        if fitted is not _UNFIT:
            return fitted
    raise BadSetting(f"{path} must be {_wanted(kind)}, got {value!r}.")


def _wanted(kind: Any) -> str:
    """A kind of value as one reads it.

    >>> _wanted(Literal["bf16", "fp16"] | None), _wanted(tuple[str, ...] | None)
    ('bf16, fp16 or none', 'tuple[str, ...] or none')
    """
    if get_origin(kind) in (Literal, Union, types.UnionType):
        flat = [x for one in get_args(kind) for x in (get_args(one) if get_origin(one) is Literal else [one])]
        *most, last = (one if isinstance(one, str) else _wanted(one) for one in flat)
        return f"{', '.join(most)} or {last}" if most else last
    if kind is None or kind is type(None):
        return "none"
    if isinstance(kind, type) and not get_args(kind):
        return kind.__name__
    return re.sub(r"\b([a-zA-Z_]\w*\.)+", "", str(kind))


_UNFIT = object()


def _fit(value: Any, kind: Any) -> Any:
    """The value if it is of the kind, an int widened to float where one is wanted; else _UNFIT."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is Literal:
        return value if value in args else _UNFIT
    if origin in (Union, types.UnionType):
        return next((v for v in (_fit(value, arg) for arg in args) if v is not _UNFIT), _UNFIT)
    if origin is tuple and isinstance(value, tuple | list):
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        items = [_fit(v, a) for v, a in zip(value, inner, strict=False)]
        return _UNFIT if _UNFIT in items or len(inner) != len(value) else tuple(items)
    if kind is None or kind is type(None):
        return None if value is None else _UNFIT
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 1e308 else _UNFIT
    fits = isinstance(kind, type) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    return value if fits else _UNFIT


def _read(text: str, path: str, module: str) -> Any:
    """A literal, none/true/false in any case, or a part written as a call with keywords; other text as it is."""
    if (word := text.strip().lower()) in _WORDS:
        return _WORDS[word]
    try:
        return _value(ast.parse(text, mode="eval").body, path, module)
    except BadSetting:
        raise
    except (SyntaxError, ValueError, TypeError, RecursionError):
        return text


_WORDS = {"none": None, "true": True, "false": False}


def _value(node: ast.expr, path: str, module: str) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
        import limbeck

        kind = getattr(limbeck, node.func.id, None) or getattr(sys.modules[module], node.func.id, None)
        if not dataclasses.is_dataclass(kind) or not isinstance(kind, type):
            raise BadSetting(f"{path}: there is no part {node.func.id}.")
        values = {
            str(k.arg): parse(_value(k.value, path, module), get_type_hints(kind).get(str(k.arg), Any), str(k.arg))
            for k in node.keywords
        }
        names = {f.name for f in dataclasses.fields(kind)}
        if unknown := [name for name in values if name not in names]:
            raise BadSetting(f"{path}: {node.func.id} has no setting {unknown[0]!r}, only {', '.join(sorted(names))}.")
        return kind(**values)
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_value(item, path, module) for item in node.elts)
    return ast.literal_eval(node)
