"""The family tree of special cases: its table, a drawing and a page. Every edge names the test that shows it."""

import ast
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from limbeck import catalogue
from limbeck.errors import BadFile

ROOT = catalogue.PACKAGE.parent
TABLE = ROOT / "docs" / "family-tree.toml"


@dataclass(frozen=True)
class Becomes:
    """One edge: ``start`` is ``end`` when …, as a test shows (``file::function`` below tests/)."""

    start: str
    end: str
    when: str
    test: str


@dataclass(frozen=True)
class Node:
    """A box: an objective of the library, or something else that an objective becomes.

    Args:
        name: of the class, or in words.
        formula: what stands below the name.
        group: the table that it stands in.
        objective: whether it is one of the library's.
    """

    name: str
    formula: str
    group: str
    objective: bool


@dataclass(frozen=True)
class Tree:
    """The whole table.

    Args:
        notation: what the letters mean.
        hub: the normal form; its edges are listed, and drawn only as the formulas of its boxes.
        groups: titles by name.
        nodes: by name.
        edges: in the table's order.
    """

    notation: str
    hub: str
    groups: Mapping[str, str]
    nodes: Mapping[str, Node]
    edges: tuple[Becomes, ...]

    def of(self, names: set[str]) -> list[Becomes]:
        """The edges at any of these nodes."""
        return [edge for edge in self.edges if {edge.start, edge.end} & names]

    @property
    def drawn(self) -> list[Becomes]:
        """The edges that are lines of the drawing."""
        return [edge for edge in self.edges if self.hub not in (edge.start, edge.end)]


def load(path: Path = TABLE, tests: Path = ROOT / "tests") -> Tree:
    """The table, checked.

    Raises:
        BadFile: a table that is damaged, contradicts the library, or names a test that is not there.
    """
    try:
        return _checked(tomllib.loads(path.read_text()), tests)
    except (OSError, ValueError) as error:
        raise BadFile(f"{path}: {error}.") from error


def _checked(table: Mapping[str, Any], tests: Path) -> Tree:
    groups = {name: value for name, value in table.items() if isinstance(value, dict)}
    _refuse("is missing", [key for key in ("notation", "becomes") if key not in table])
    _refuse("has no title", [name for name, value in groups.items() if "title" not in value])
    listed = list(_nodes(groups))
    nodes = {node.name: node for node in listed}
    edges = tuple(_edge(row) for row in table["becomes"])
    _refuse("is there twice", _twice(node.name for node in listed))
    _refuse("is there twice", _twice(f"{edge.start} → {edge.end}" for edge in edges))
    ends = {name: None for edge in edges for name in (edge.start, edge.end)}
    _refuse("is in no group", [name for name in ends if name not in nodes])
    _refuse("has no edge", [name for name in nodes if name not in ends])
    known = objectives()
    _refuse("is no objective", [node.name for node in listed if node.objective and node.name not in known])
    _refuse("is an objective", [node.name for node in listed if not node.objective and node.name in known])
    _refuse("is no test", [edge.test for edge in edges if not has_test(tests, edge.test)])
    _refuse("becomes itself", _circle(edges))
    titles = {name: str(value["title"]) for name, value in groups.items()}
    return Tree(str(table["notation"]), str(table.get("hub", "")), titles, nodes, edges)


def _nodes(groups: Mapping[str, Mapping[str, Any]]) -> Iterator[Node]:
    for group, value in groups.items():
        if unknown := set(value) - {"title", "objectives", "others"}:
            raise ValueError(f"{group} has an unknown entry, {min(unknown)}")
        for kind in ("objectives", "others"):
            for name, formula in value.get(kind, {}).items():
                yield Node(name, formula, group, kind == "objectives")


def _edge(row: Mapping[str, str]) -> Becomes:
    if set(row) != {"from", "to", "when", "test"}:
        raise ValueError(f"an edge has from, to, when and test, got {', '.join(row)}")
    return Becomes(row["from"], row["to"], row["when"], row["test"])


def _twice(names: Iterator[str]) -> list[str]:
    return [name for name, n in Counter(names).items() if n > 1]


def _refuse(why: str, names: list[str]) -> None:
    if names:
        raise ValueError(f"{names[0]} {why}")


def _circle(edges: tuple[Becomes, ...]) -> list[str]:
    """A node on a circle of edges, or behind one: of what is left when nodes that nothing leads to go, one by one."""
    left = list(edges)
    while left:
        ends = {edge.end for edge in left}
        if all(edge.start in ends for edge in left):
            return [left[0].start]
        left = [edge for edge in left if edge.start in ends]
    return []


def objectives() -> dict[str, type]:
    """The objectives that the library exports, by name."""
    import limbeck.objectives as room
    from limbeck.engine.objective import Objective

    found = {name: getattr(room, name) for name in room.__all__}
    return {name: kind for name, kind in found.items() if isinstance(kind, type) and issubclass(kind, Objective)}


def has_test(tests: Path, name: str) -> bool:
    """Whether a test, ``file::function``, is there; nothing is imported.

    >>> has_test(ROOT / "tests", "no.py::test")
    False
    """
    file, _, function = name.partition("::")
    return (tests / file).is_file() and function in _functions(tests / file)


@cache
def _functions(path: Path) -> frozenset[str]:
    tree = ast.walk(ast.parse(path.read_text()))
    return frozenset(node.name for node in tree if isinstance(node, ast.FunctionDef) and node.name.startswith("test"))


def page(tree: Tree, links: Mapping[str, str]) -> str:
    """The page: the drawing, and a table of edges for each group.

    Args:
        tree: the table.
        links: pages by node, relative to the page.
    """
    from limbeck.docs.markdown import MADE, escaped, link_to_test, linked, table

    lines = [
        MADE,
        "# The family tree of special cases",
        "An arrow says *becomes, when …*: the upper objective, with that setting or in that limit, has the gradient or "
        "the fixed point of the lower one. Every arrow is shown by a test on a closed form, named in the tables below; "
        "without a test there is no arrow.",
        "![Objectives and what they become; the tables below say the same](family-tree.svg)",
        tree.notation.strip(),
    ]
    for group, title in tree.groups.items():
        rows = [
            [linked(edge.start, links), linked(edge.end, links), escaped(edge.when), link_to_test(edge.test, "..")]
            for edge in tree.edges
            if tree.nodes[edge.start].group == group
        ]
        if rows:
            lines += [f"## {title}", table(["", "becomes", "when", "shown by"], rows)]
    return "\n\n".join(lines) + "\n"
