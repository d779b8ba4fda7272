"""Docstrings as data: the line, what follows, arguments, source."""

import dataclasses
import inspect
import re
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Doc:
    """A docstring in parts.

    Args:
        line: its first paragraph, in one line.
        body: the other paragraphs, each in one line; a formula of its own keeps its lines and its indent.
        args: meaning by argument.
        source: where the formula comes from; empty if it says nothing of that.
    """

    line: str = ""
    body: tuple[str, ...] = ()
    args: dict[str, str] = field(default_factory=dict[str, str])
    source: str = ""


def parse(text: str) -> Doc:
    """The parts of a docstring in this project's form; examples are left out.

    >>> doc = parse("Half of x,\\ny = x/2.\\n\\nArgs:\\n    x: a number\\n        or two.\\n\\n>>> 1")
    >>> doc.line, doc.args
    ('Half of x, y = x/2.', {'x': 'a number or two.'})
    """
    prose: list[str] = []
    args: dict[str, str] = {}
    source = ""
    for block in re.split(r"\n[ ]*\n", inspect.cleandoc(text).partition(">>>")[0].rstrip()):
        head = block.partition("\n")[0]
        if head.startswith("Args:"):
            # the pattern fits any text
            note, entries = re.fullmatch(r"Args:(.*?)((?:\n    .*)*)", block, re.S).groups()  # type: ignore[union-attr]
            note = re.sub(r"^those of `\w+`(; |\.$)", "", _joined(note))  # what they are told anyhow
            prose += [note] if note else []
            args |= _entries(entries)
        elif block.startswith("    "):
            prose.append(block)
        elif head.startswith("Source:"):
            source = _joined(block.removeprefix("Source:"))
        elif not re.fullmatch(r"(Raises|Returns|Yields):", head) and block:
            prose.append(re.sub(r"::$", ":", _joined(block)))
    return Doc(prose[0] if prose else "", tuple(prose[1:]), args, source)


def _entries(text: str) -> dict[str, str]:
    """``name: meaning`` in lines of one indent; deeper lines go on."""
    found: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc(text).splitlines():
        if match := re.match(r"(\w+): +(.*)", line):
            name, found[match[1]] = match[1], match[2]
        elif name:
            found[name] += " " + line.strip()
    return found


def _joined(text: str) -> str:
    return " ".join(text.split())


def of(part: Any) -> Doc:
    """The docstring of a class or function. Arguments that a class does not explain are explained by its bases."""
    kinds = part.__mro__ if isinstance(part, type) else (part,)
    docs = [parse(kind.__doc__ or "") for kind in kinds if kind is not object and _written(kind)]
    if not docs:
        return Doc()
    args = {name: meaning for doc in reversed(docs) for name, meaning in doc.args.items()}
    return dataclasses.replace(docs[0] if _written(part) else Doc(), args=args)


def _written(part: Any) -> bool:
    """Whether somebody wrote it: a dataclass without a docstring is given its signature."""
    return bool(part.__doc__) and not part.__doc__.startswith(f"{part.__name__}(")
