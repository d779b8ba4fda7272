"""Settings of parts: in few words, and as rows of a table."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from limbeck.docs import docstrings
from limbeck.docs.markdown import code, prose
from limbeck.engine.objective import Objective, Scaled, Sum


def is_part(value: Any) -> bool:
    """Whether a value is an objective."""
    return isinstance(value, Objective)


def settings_in(part: Any) -> Iterator[Any]:
    """The parts below a part of an objective, not those of objectives in it."""
    for value in vars(part).values():
        for inner in value if isinstance(value, tuple) else (value,):
            if _is_setting(inner):
                yield inner
                yield from settings_in(inner)


def _is_setting(value: Any) -> bool:
    is_own = dataclasses.is_dataclass(value) and not isinstance(value, type) and not is_part(value)
    return is_own and is_ours(value)


def arguments(parts: Sequence[Any], usual: Any = None, above: str = "") -> Iterator[list[str]]:
    """Rows of name, value here, that of the usual part if another, and meaning; the settings of a part are below it."""
    meanings = docstrings.of(type(parts[0])).args
    for field in dataclasses.fields(parts[0]):
        name, values = f"{above}{field.name}", [getattr(part, field.name) for part in parts]
        normal = default(field) if usual is None else getattr(usual, field.name)
        here = " / ".join(dict.fromkeys(code(_row_value(value)) for value in values))
        other = here if normal is dataclasses.MISSING else code(_row_value(normal))
        meaning = prose(meanings.get(field.name, "")).removesuffix(".")
        yield [code(name), here, "" if other == here else other, meaning]
        if _has_rows(values[0]) and len(kinds := {type(value) for value in values}) == 1:
            yield from arguments(values, normal if type(normal) in kinds else None, f"{name}.")


def _row_value(value: Any) -> str:
    return type(value).__name__ if _has_rows(value) else brief(value)


def _has_rows(value: Any) -> bool:
    return _is_setting(value) and bool(dataclasses.fields(value))


def is_ours(part: Any) -> bool:
    """Whether it is defined in the objectives' room."""
    return part.__module__.startswith("limbeck.objectives")


def default(field: "dataclasses.Field[Any]") -> Any:
    """A field's default, MISSING if it has none."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


_TOLD = {"lr", "decay", "ratios"}


def brief(value: Any) -> str:
    """A setting in few words: functions by name, parts without what they have by default unless it is always told.

    >>> from limbeck import DMD, GAN, Adam
    >>> brief(Adam(lr=5e-4, betas=(0.0, 0.99))), brief(0.3 * GAN() + DMD())
    ('Adam(lr=0.0005, betas=(0, 0.99))', '0.3 · GAN() + DMD()')
    """
    if isinstance(value, Sum):
        return " + ".join(map(brief, value.parts))
    if isinstance(value, Scaled):
        inner = brief(value.objective)
        return f"{brief(value.weight)} · " + (f"({inner})" if isinstance(value.objective, Sum) else inner)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f for f in dataclasses.fields(value) if _is_told(f, getattr(value, f.name))]
        return f"{type(value).__name__}({', '.join(f'{f.name}={brief(getattr(value, f.name))}' for f in fields)})"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(brief, value))}{',' * (len(value) == 1)})"
    if callable(value):
        return getattr(value, "__qualname__", type(value).__name__).replace("<lambda>", "…").split("<locals>.")[-1]
    return repr(value) if value is None or isinstance(value, bool | int | str) else type(value).__name__


def _is_told(field: "dataclasses.Field[Any]", value: Any) -> bool:
    return (field.name in _TOLD and value is not None) or not same(value, default(field))


def same(one: Any, other: Any) -> bool:
    """Whether two settings read the same."""
    return other is not dataclasses.MISSING and brief(one) == brief(other)


__all__ = ["arguments", "brief", "default", "is_ours", "is_part", "same", "settings_in"]
