"""Small pieces of Markdown: escaped text, tables, links."""

import re
from collections.abc import Mapping, Sequence

MADE = "<!-- Made by `make docs` from recipes, docstrings, evidence and docs/family-tree.toml: change those. -->"
"""The first line of every page."""


def prose(text: str) -> str:
    """A docstring's words as Markdown: nothing in a formula is taken for emphasis or HTML; arXiv numbers are links.

    >>> print(prose("w * ``CFG(scale=2)`` < `x`, arXiv 2209.14988, eq. 3"))
    w \\* `CFG(scale=2)` &lt; `x`, [arXiv 2209.14988](https://arxiv.org/abs/2209.14988), eq. 3
    """
    pieces = re.split(r"(``.+?``|`.+?`)", text)
    pieces[1::2] = [f"`{piece.strip('`')}`" for piece in pieces[1::2]]
    pieces[::2] = [arxiv_links(escaped(piece)) for piece in pieces[::2]]
    return "".join(pieces)


def escaped(text: str) -> str:
    """A text whose characters all mean themselves; underscores inside words do so already."""
    text = re.sub(r"([*\\~]|(?<!\w)_|_(?!\w))", r"\\\1", text)
    return re.sub(r"&(?=#?\w+;)", "&amp;", text).replace("<", "&lt;")


def arxiv_links(text: str) -> str:
    """``arXiv 2209.14988`` as a link."""
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", lambda found: arxiv(found[1]), text)


def arxiv(number: str) -> str:
    """A link to a paper."""
    return f"[arXiv {number}](https://arxiv.org/abs/{number})"


def code(text: object) -> str:
    """As code, in tables too."""
    return f"`{text}`"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; what would end a cell is escaped.

    >>> print(table(["a", "b"], [["1", "x|y"]]))
    | a | b |
    | --- | --- |
    | 1 | x\\|y |
    """
    lines = [list(head), ["---"] * len(head), *map(list, rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def linked(name: str, links: Mapping[str, str]) -> str:
    """A name as a link to its page, where it has one."""
    return f"[{escaped(name)}]({links[name]})" if name in links else escaped(name)


def link_to_test(test: str, root: str) -> str:
    """A test, ``file::function`` below tests/, as a link to its file, from a page that sees the root at ``root``."""
    file, _, function = test.partition("::")
    return f"[`{function}`]({root}/tests/{file})"
