"""A run's report: one HTML page that opens from disk, without scripts, fonts or pictures from elsewhere.

The page is built as a tree of elements, so that whatever a user wrote is text in it and never markup.
"""

import base64
import dataclasses
import json
import re
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from limbeck.engine.recipe import Paper, Recipe, Stage
from limbeck.engine.run import Session
from limbeck.engine.settings import settings
from limbeck.errors import LimbeckError
from limbeck.evaluate.cost import cost
from limbeck.evaluate.lines import read_metrics
from limbeck.evaluate.style import STYLE
from limbeck.evaluate.svg import el, panel
from limbeck.evaluate.whole import whole

SIDES = ("teacher", "heldout")
"""What a student's figures stand beside; its names end the figures'."""


EVERY = 60.0
"""Seconds between two reports of a run under way; more where writing one takes over 2 % of that."""


@dataclass(frozen=True, kw_only=True)
class About:
    """What a report says of a run beside what is in its folder.

    Args:
        title: of the system; its paper's, for those of the catalogue.
        record: the run's ``recipe.json``.
        recipe: as it runs.
        usual: the same system on the same problem as it would run without any settings.
    """

    title: str
    record: Mapping[str, Any]
    recipe: Recipe
    usual: Recipe

    @cached_property
    def ours(self) -> dict[str, Any]:
        """Its settings by path."""
        return settings(self.recipe)

    @cached_property
    def changed(self) -> dict[str, tuple[Any, Any]]:
        """Those that differ from the usual, with both values."""
        return changes(settings(self.usual), self.ours)


def write_report(folder: Path, about: About, status: str) -> Path:
    """Writes ``report.html`` into a run's folder, whole or not at all, from what is there; returns its path.

    Args:
        folder: the run's; metrics, figures and pictures may be missing.
        about: what is not in the folder.
        status: how far the run is, in words.
    """
    path = folder / "report.html"
    with whole(path) as partial:
        partial.write_text(html(folder, about, status), encoding="utf-8", errors="xmlcharrefreplace")
    return path


@contextmanager
def reporting(session: Session, about: About) -> Generator[Callable[[], None]]:
    """Keeps a run's report inside the block: at its start, when called and due, and at its end however that comes.

    The run does not depend on it: on a disk without room, the report stays as it was.
    """
    due = 0.0

    def write(status: str) -> None:
        nonlocal due
        began = time.monotonic()
        with suppress(OSError):
            write_report(session.folder, about, status)
        due = time.monotonic() + max(EVERY, 50 * (time.monotonic() - began))

    def now_and_then() -> None:
        if time.monotonic() > due:
            write(f"under way: {_place(session)}")

    write("begun" if session.position == (0, 0) else f"resumed: {_place(session)}")
    try:
        yield now_and_then
    except LimbeckError as error:
        write(f"failed: {error}")
        raise
    write(_place(session) if session.finished else f"interrupted: {_place(session)}")


def _place(session: Session) -> str:
    index, i = session.position
    return "trained" if session.finished else f"stage {session.recipe.stages[index].name}, tick {i:,}"


def html(folder: Path, about: About, status: str) -> str:
    """The page as text."""
    name = f"{Path(about.record['system']).stem} on {Path(about.record['problem']).stem}"
    content = [
        _header(folder, about, name, status),
        _changes(about),
        _result(folder),
        _moments(folder, about),
        *_curves(folder, about),
        _settings(about),
    ]
    page = el(
        "html",
        el(
            "head",
            el("meta", charset="utf-8"),
            el("meta", name="viewport", content="width=device-width, initial-scale=1"),
            el("meta", {"http-equiv": "Content-Security-Policy", "content": POLICY}),
            el("title", f"{name} · Limbeck"),
            el("style", STYLE),
        ),
        el("body", el("main", *(part for part in content if part is not None))),
        lang="en",
    )
    return "<!doctype html>\n" + ElementTree.tostring(page, encoding="unicode", method="html") + "\n"


POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


# Header


def _header(folder: Path, about: About, name: str, status: str) -> Element:
    paper = about.recipe.paper or Paper("", "")  # a recipe of a user's own may have none
    where = f"arXiv {paper.arxiv}" if paper.arxiv else ""
    link = el("a", where, href=f"https://arxiv.org/abs/{paper.arxiv}") if ARXIV.fullmatch(paper.arxiv) else where
    facts = [("ticks", " + ".join(f"{stage.steps:,}" for stage in _stages(about.recipe)))]
    if spent := cost(folder):
        facts.append(("training", duration(spent.seconds) + (f", in {spent.attempts} parts" * (spent.attempts > 1))))
        facts += [("peak memory", f"{spent.peak / 1e6:,.0f} MB")] if spent.peak else []
    record = about.record
    facts += [(key, str(record[key])) for key in ("seed", "threads")] + [("Limbeck", str(record.get("limbeck", "")))]
    return el(
        "header",
        el("h1", name),
        el("p", about.title, class_="title"),
        el("p", paper.authors, " · " if paper.authors and where else "", link, class_="muted"),
        el("p", el("span", status, class_="status"), el("span", f" {datetime.now():%Y-%m-%d %H:%M}", class_="muted")),
        el("dl", *(el("div", el("dt", key), el("dd", value)) for key, value in facts), class_="facts"),
    )


ARXIV = re.compile(r"\d{4}\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d{7}")


def duration(seconds: float) -> str:
    """A time in words.

    >>> duration(0.514), duration(77), duration(7300)
    ('0.51 s', '1 min 17 s', '2 h 01 min')
    """
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


# Settings


def _changes(about: About) -> Element:
    if not about.changed:
        return _section("Settings", el("p", "All as the recipe has them by default.", class_="muted"))
    cells = [(el("code", path), *map(_value, pair)) for path, pair in about.changed.items()]
    return _section("Changed settings", _table(("setting", "here", "by default"), cells))


def _settings(about: About) -> Element:
    pairs = []
    for path, value in about.ours.items():
        if not any(other.startswith(f"{path}.") for other in about.ours):
            mine = any(f"{path}.".startswith(f"{above}.") for above in about.changed)
            marked = {"class": "changed"} if mine else {}
            pairs.append(el("div", marked, el("dt", el("code", path)), el("dd", _value(value))))
    section = _section("All settings", el("dl", *pairs, class_="all"))
    if claim := about.recipe.claim:
        text = f"What the recipe claims, on {claim.on}: {claim.text}. Measured by limbeck verify, not by this run."
        section.append(el("p", text, class_="muted"))
    return section


MISSING = object()


def changes(usual: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that differ, as (ours, usual) by path: a part of another kind as a whole, else each value by itself."""
    found: dict[str, tuple[Any, Any]] = {}
    for path in [*ours, *(path for path in usual if path not in ours)]:
        pair = ours.get(path, MISSING), usual.get(path, MISSING)
        if any(path.startswith(f"{above}.") for above in found):
            continue
        same_kind = type(pair[0]) is type(pair[1]) and _has_parts(pair[0])
        if not same_kind and repr(pair[0]) != repr(pair[1]):
            found[path] = pair
    return found


def _has_parts(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and bool(dataclasses.fields(value))


def _value(value: Any) -> Element:
    return el("code", "–" if value is MISSING else value if isinstance(value, str) else repr(value))


# Figures


def beside(figures: Mapping[str, float | None]) -> tuple[list[str], dict[str, list[float | None]]]:
    """Figures as a table: the sides that the student stands beside, and by name the student's figure and theirs.

    >>> beside({"nfe": 1, "nfe_teacher": 35, "size": 2})
    (['teacher'], {'nfe': [1, 35], 'size': [2, None]})
    """
    sides = [side for side in SIDES if any(name.endswith(f"_{side}") for name in figures)]
    own = [name for name in figures if not any(name.endswith(f"_{side}") for side in sides)]
    return sides, {name: [figures.get(key) for key in (name, *(f"{name}_{side}" for side in sides))] for name in own}


def _result(folder: Path) -> Element | None:
    try:
        figures = json.loads((folder / "result.json").read_text())
        sides, table = beside(figures)
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    cells = [(label(name), *map(number, values)) for name, values in table.items()]
    head = ("", "student", *("held-out data" if side == "heldout" else side for side in sides))
    picture = _picture(folder / "samples" / "final.png", "Samples of the teacher and of the student from one noise")
    content = [_table(head, cells, numbers=True), *([] if picture is None else [picture])]
    return _section("Result", el("div", *content, class_="result"))


def label(name: str) -> str:
    """A figure's name as people write it.

    >>> label("frechet"), label("seconds_per_1000")
    ('Fréchet', 'seconds per 1000')
    """
    return {"frechet": "Fréchet", "nfe": "NFE"}.get(name, name.replace("_", " "))


def number(value: float | None) -> str:
    """A figure as people read it.

    >>> number(72842), number(0.123456), number(None)
    ('72,842', '0.1235', '–')
    """
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


# Pictures


def _moments(folder: Path, about: About) -> Element | None:
    stages = about.recipe.stages
    several = len(_stages(about.recipe)) > 1
    shown = []
    for path in sorted((folder / "samples").glob("[0-9][0-9]-" + 8 * "[0-9]" + ".png")):
        index, i = map(int, path.stem.split("-"))
        if index >= len(stages) or not isinstance(stage := stages[index], Stage):
            continue
        when = f"{stage.name}, tick {i:,}" if several else f"tick {i:,}"
        picture = _picture(path, f"Samples at {when}", f"{when} · {100 * i / stage.steps:.0f} %")
        shown += [] if picture is None else [picture]
    text = "The student so far, always from the same noise and conditions."
    return _section("Over time", el("p", text, class_="muted"), el("div", *shown, class_="strip")) if shown else None


def _picture(path: Path, alt: str, caption: str | None = None) -> Element | None:
    try:
        data = base64.b64encode(path.read_bytes()).decode()
    except OSError:
        return None
    image = el("img", src=f"data:image/png;base64,{data}", alt=alt)
    return el("figure", image, *([el("figcaption", caption)] if caption else []), class_="picture")


# Curves


CLIPPED = "Of each role that learns, before clipping."


def _curves(folder: Path, about: About) -> list[Element]:
    borders = _borders(about.recipe)
    series, skipped = read_metrics(folder / "metrics.jsonl", {name: first for name, first, _ in borders})
    parts = []
    thick = "The line is the mean of neighbouring ticks, the band what they range over."
    for kind, title, note in (("losses", "Losses", f"By tick. {thick}"), ("norms", "Gradient norms", CLIPPED)):
        found = {name: one for (of, name), one in series.items() if of == kind}
        panels = [panel(name, one, borders, kind) for name, one in sorted(found.items())]
        if panels:
            parts.append(_section(title, el("p", note, class_="muted"), el("div", *panels, class_="panels")))
    if parts and skipped:
        most = ", ".join(f"{name} {count:,}" for name, count in sorted(skipped.items()))
        parts[-1].append(el("p", f"Updates that were not finite and were left out: {most}.", class_="warn"))
    return parts


def _stages(recipe: Recipe) -> list[Stage]:
    return [stage for stage in recipe.stages if isinstance(stage, Stage)]


def _borders(recipe: Recipe) -> list[tuple[str, int, int]]:
    """(name, first tick, last tick) of each trained stage, in ticks from the run's start."""
    found, first = [], 0
    for stage in _stages(recipe):
        found.append((stage.name, first, first + stage.steps))
        first += stage.steps
    return found


# Tables and sections


def _section(title: str, *content: Element) -> Element:
    return el("section", el("h2", title), *content)


def _table(head: Sequence[str], cells: Iterable[Sequence[str | Element]], *, numbers: bool = False) -> Element:
    rows = [el("tr", *(el("th" if k == 0 else "td", cell) for k, cell in enumerate(row))) for row in cells]
    top = el("thead", el("tr", *(el("th", name) for name in head)))
    return el("div", el("table", top, el("tbody", *rows), class_="numbers" if numbers else "words"), class_="scroll")
