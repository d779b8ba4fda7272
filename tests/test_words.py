"""One word for one thing, and arrows between rooms that point one way."""

import ast
from collections import defaultdict
from pathlib import Path

import limbeck

HOME = Path(limbeck.__file__).parent
SHARED = ("diffusion", "engine", "teachers", "students", "evaluate", "bridges")
"""Rooms whose parts are used beside each other."""


def test_a_name_is_defined_in_one_place() -> None:
    where: dict[str, list[str]] = defaultdict(list)
    for path in (path for room in SHARED for path in sorted((HOME / room).glob("*.py"))):
        for part in ast.parse(path.read_text()).body:
            if isinstance(part, ast.FunctionDef | ast.ClassDef) and not part.name.startswith("_"):
                where[part.name].append(path.relative_to(HOME).as_posix())
    assert {name: files for name, files in where.items() if len(files) > 1} == {}


def test_only_what_is_above_them_knows_recipes() -> None:
    below = [path for room in (*SHARED, "objectives", "problems") for path in (HOME / room).rglob("*.py")]
    assert len(below) > 100
    known = {path.name for path in below for node in ast.walk(ast.parse(path.read_text())) if _names_recipes(node)}
    assert known == set()


def _names_recipes(node: ast.AST) -> bool:
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
    return any(name.startswith("limbeck.recipes") for name in names)
