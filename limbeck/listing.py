"""The table of systems, in which no word is broken; without torch."""

import textwrap
from typing import Any


def show(table: list[dict[str, object]]) -> None:
    """Prints systems, as ``systems --json`` has them: in columns where there is room, else as text."""
    from rich.console import Console

    console, rows = Console(markup=False, highlight=False), [_cells(row) for row in table]
    wide = {name: max(len(cells[name]) for cells in (*rows, {name: name})) for name in rows[0]} if rows else {}
    words = [len(word) for cells in rows for word in cells["title"].split()]
    if sum(wide.values()) - wide.get("title", 0) + 2 * len(wide) + max(words, default=0) <= console.width:
        console.print(_as_table(rows, wide))
    else:
        for cells in rows:
            print(_as_text(cells, console.width))
    ready = sum(bool(row["recipe"]) for row in table)
    measured = sum(isinstance(row["evidence"], dict) for row in table)
    print(f"{len(table)} systems, {ready} with a recipe, {measured} measured.")


def _cells(row: dict[str, object]) -> dict[str, str]:
    """What is shown of a system, by column."""
    found = row["evidence"]
    cells = {"system": str(row["id"]), "title": str(row["title"]), "family": str(row["family"])}
    cells |= {
        "recipe": "yes" if row["recipe"] else "",
        **dict.fromkeys(("figure", "bound", "spread", "on", "when"), ""),
    }
    if isinstance(found, dict):
        figure = "inf" if found["figure"] is None else f"{found['figure']:.3g}"
        cells["figure"] = figure + ("" if found["passed"] else " failed")
        cells |= {"bound": f"≤ {found['bound']:g}", "spread": f"± {found['spread']:.2g}", "on": str(found["problem"])}
        cells["when"] = str(found["when"])[:10] + (" (stale)" if found["stale"] else "")
    return cells


def _as_table(rows: list[dict[str, str]], wide: dict[str, int]) -> Any:
    """Systems line by line; titles alone may take several."""
    from rich.table import Table

    out = Table(box=None)
    for name, width in wide.items():
        if name == "title":
            out.add_column(name)
        else:
            out.add_column(name, no_wrap=True, min_width=width)
    for cells in rows:
        out.add_row(*cells.values())
    return out


def _as_text(cells: dict[str, str], width: int) -> str:
    """A system where there is no room for columns: figures behind its name, then its title."""
    said = [cells["system"], cells["family"]]
    if cells["figure"]:
        said += [" ".join(cells[name] for name in ("figure", "bound", "spread")), f"on {cells['on']}", cells["when"]]
    elif cells["recipe"]:
        said += ["not measured"]
    lines = (", ".join(part.replace(" ", "\u00a0") for part in said), cells["title"])  # parts stay in one piece
    how: dict[str, Any] = {"width": width, "break_long_words": False, "break_on_hyphens": False}
    head, title = (
        textwrap.fill(line, initial_indent="  " * k, subsequent_indent="    ", **how) for k, line in enumerate(lines)
    )
    return f"{head}\n{title}".replace("\u00a0", " ")


__all__ = ["show"]
