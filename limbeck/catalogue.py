"""Which systems there are, which have recipes, what was measured; all without importing torch."""

import ast
import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from limbeck.errors import BadFile, BadSetting

PACKAGE = Path(__file__).parent
RECIPES = PACKAGE / "recipes"
PROBLEMS = PACKAGE / "problems"
EVIDENCE = next((p for p in (PACKAGE / "evidence", PACKAGE.parent / "evidence") if p.is_dir()), PACKAGE / "evidence")

FOLDERS = ("model_index.json", "config.json")
"""What a pipeline of diffusers has, or a model of transformers, that is something to distil on."""


@dataclass(frozen=True)
class System:
    """A row of the catalogue."""

    id: str
    title: str
    year: int
    family: str
    paper: str
    foundation: bool = False

    @property
    def path(self) -> Path:
        """Where its recipe is, or would be."""
        return RECIPES / self.family.lower().replace("-", "_") / f"{self.id.replace('-', '_')}.py"

    @property
    def evidence(self) -> dict[str, Any] | None:
        """What was measured last, with ``stale`` if the code has changed since; None without a measurement."""
        path = EVIDENCE / f"{self.id}.json"
        if not path.exists():
            return None
        keys = ("figure", "bound", "passed", "spread", "problem", "when")
        try:
            record = json.loads(path.read_text())
            return {**{key: record[key] for key in keys}, "stale": digest(record["sources"]) != record["digest"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadFile(f"{path} is not a record of evidence: {error}.") from error

    def row(self) -> dict[str, Any]:
        """The row as ``limbeck systems --json`` prints it."""
        recipe = self.path.exists()
        return {
            "id": self.id,
            "title": self.title,
            "family": self.family,
            "recipe": recipe,
            "evidence": self.evidence if recipe else None,
        }


@lru_cache(maxsize=1)
def systems() -> tuple[System, ...]:
    """All systems, in the catalogue's order.

    >>> len(systems()) >= 353
    True
    """
    table = tomllib.loads((RECIPES / "catalogue.toml").read_text())
    return tuple(System(**row) for row in table["system"])


def find(name: str) -> System:
    """The system of this id.

    >>> find("dmd3")
    Traceback (most recent call last):
    limbeck.errors.BadSetting: there is no system 'dmd3'; did you mean dmdr or dmd2?
    """
    known = {system.id: system for system in systems()}
    if name in known:
        return known[name]
    raise BadSetting(f"there is no system {name!r}{hint(name, known)}")


def in_family(family: str) -> tuple[System, ...]:
    """The systems of a family.

    >>> in_family("G-dst")
    Traceback (most recent call last):
    limbeck.errors.BadSetting: there is no family 'G-dst'; did you mean G-dist or G-adv?
    """
    chosen = tuple(system for system in systems() if system.family == family)
    if not chosen:
        families = sorted({system.family for system in systems()})
        raise BadSetting(f"there is no family {family!r}{hint(family, families)}")
    return chosen


def problems() -> dict[str, Path]:
    """Built-in problems by name: every module of the room that makes one.

    >>> "mixture2d" in problems()
    True
    """
    paths = sorted(PROBLEMS.glob("*.py"))
    return {path.stem.replace("_", "-"): path for path in paths if "\ndef problem(" in path.read_text()}


def find_problem(name: str) -> Path:
    """The file of a built-in problem, or of a user's own; or the folder of a pipeline or model, or an id as a path.

    >>> find_problem("sequence")
    Traceback (most recent call last):
    limbeck.errors.BadSetting: there is no problem 'sequence'; did you mean sequences? A path to a Python file fits too.
    """
    if any((Path(name) / index).exists() for index in FOLDERS) or is_id(name):
        return Path(name)
    if name not in problems() and Path(name).is_dir():
        raise BadFile(f"{name} is no folder of a pipeline or model: it has neither {' nor '.join(FOLDERS)}.")
    return problems()[name] if name in problems() else _own(name, "problem", problems())


def is_id(name: str) -> bool:
    """Whether a name is that of a pipeline elsewhere, ``owner/name``, and nothing here is called so.

    >>> is_id("owner/pipeline"), is_id("owner/file.py"), is_id("./folder"), is_id("digits")
    (True, False, False, False)
    """
    ends = name.endswith((".py", ".json", ".txt"))
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None and not ends and not Path(name).exists()


def find_recipe(name: str) -> Path:
    """The file of a system's recipe, or of a user's own.

    Raises:
        BadSetting: no such system, or one without a recipe yet.
        BadFile: no such file.
    """
    if name.endswith(".py") or "/" in name:
        return _own(name, "system", ())
    system = find(name)
    if not system.path.exists():
        ready = [other.id for other in systems() if other.path.exists()]
        raise BadSetting(f"{name} is in the catalogue but has no recipe yet; these have: {', '.join(ready)}.")
    return system.path


def _own(name: str, what: str, known: Iterable[str]) -> Path:
    if not (name.endswith(".py") or "/" in name):
        raise BadSetting(f"there is no {what} {name!r}{hint(name, known)} A path to a Python file fits too.")
    path = Path(name)
    if not path.is_file() or path.suffix != ".py":
        raise BadFile(f"{name} is not a Python file.")
    return path


def hint(name: str, known: Iterable[str]) -> str:
    """How a sentence about an unknown name ends: with what is close, or with all there are if they are few.

    >>> hint("distil", ["distill", "show"]), hint("walk", ["distill", "show"])
    ('; did you mean distill?', '; there are distill, show.')
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, 3, 0.6)
    return (
        f"; did you mean {' or '.join(close)}?"
        if close
        else f"; there are {', '.join(known)}."
        if len(known) < 24
        else "."
    )


def digest(sources: Iterable[str]) -> str:
    """A digest of source files of the package, by relative path, that docstrings and layout do not change.

    ``path::name,other`` is those definitions of a file alone.
    """
    parts = [
        f"{source}:{_shape(PACKAGE / path, names)}" for source in sorted(sources) for path, names in [_cut(source)]
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def needed(tree: ast.Module, names: Iterable[str]) -> set[str]:
    """Those of a file's definitions that these names need, themselves included.

    >>> sorted(needed(ast.parse("a = 1\\ndef f(): return a\\ndef g(): return f()\\nb = 2"), {"g"}))
    ['a', 'f', 'g']
    """
    found: set[str] = set()
    todo = set(names)
    while todo:
        found |= todo
        said = {node.id for top in chosen(tree, todo) for node in ast.walk(top) if isinstance(node, ast.Name)}
        todo = {name for node in tree.body for name in _defines(node) if name in said} - found
    return found


def chosen(tree: ast.Module, names: Iterable[str]) -> list[ast.stmt]:
    """The statements of a file that define these names."""
    names = set(names)
    return [node for node in tree.body if _defines(node) & names]


def _defines(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _cut(source: str) -> tuple[str, tuple[str, ...] | None]:
    path, cut, names = source.partition("::")
    return path, tuple(names.split(",")) if cut else None


@cache
def _shape(path: Path, names: tuple[str, ...] | None = None) -> str:
    if not path.exists():
        return "gone"
    tree = ast.parse(path.read_text())
    if names is not None:
        tree.body = chosen(tree, names)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            node.body = body[1:]  # type: ignore[attr-defined]
    return hashlib.sha256(repr(_plain(tree)).encode()).hexdigest()


def _plain(node: object) -> object:
    """A syntax tree as nested tuples without empty fields, which differ between versions of Python."""
    if isinstance(node, ast.AST):
        fields = ((name, _plain(value)) for name, value in ast.iter_fields(node) if value not in (None, [], ()))
        return (type(node).__name__, *fields)
    return tuple(map(_plain, node)) if isinstance(node, list) else node
