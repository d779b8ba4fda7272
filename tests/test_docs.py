"""The pages in docs/ are what the code says now, their links resolve, and the family tree is true and legible."""

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from torch import nn

from limbeck import catalogue, docs, engine
from limbeck.diffusion import LogNormal
from limbeck.docs import docstrings, drawing, family, layout, markdown, pages
from limbeck.docs.__main__ import main
from limbeck.docs.family import ROOT
from limbeck.docs.layout import Edge, Rect
from limbeck.engine.recipe import Prior, Trial
from limbeck.errors import BadFile
from limbeck.objectives import DMD, GAN, Critic, Fake

pytestmark = pytest.mark.xdist_group("docs")  # one worker of pytest makes the pages, once
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def built() -> dict[str, str]:
    return docs.build()


@pytest.fixture(scope="module")
def found() -> list[pages.Entry]:
    return pages.entries()


@pytest.fixture(scope="module")
def tree() -> family.Tree:
    return family.load()


def entry(found: list[pages.Entry], name: str) -> pages.Entry:
    return next(one for one in found if one.system.id == name)


# The pages


def test_pages_are_up_to_date(built):
    old = [name for name, text in built.items() if (DOCS / name).read_bytes() != text.encode()]
    assert not old, f"{', '.join(old)}: run `make docs`"
    there = {f"systems/{path.name}" for path in (DOCS / "systems").iterdir()}
    assert there == {name for name in built if name.startswith("systems/")}


def test_every_recipe_has_a_page_and_a_line_in_the_index(built):
    index = built["systems/README.md"]
    ready = [system for system in catalogue.systems() if system.path.exists()]
    assert ready
    for system in ready:
        text = built[f"systems/{system.id}.md"]
        assert f"[{system.id}]({system.id}.md)" in index and f"# {markdown.escaped(system.title)}\n" in text
        for heading in ("Stages", "Relation to others", "Run it", "Evidence"):
            assert f"\n## {heading}\n" in text
        assert f"```\nlimbeck distill {system.id} --on " in text and text.count("```") % 2 == 0
    assert f"{len(ready)} of the {len(catalogue.systems())} systems" in index


def test_every_family_of_the_catalogue_has_a_name():
    assert {system.family for system in catalogue.systems()} == set(pages.FAMILIES)


def test_every_argument_is_explained_and_nothing_is_an_address(built):
    for name, text in built.items():
        assert " at 0x" not in text and "<function" not in text, name
        for row in re.findall(r"^\| `[^`]*` \|.*$", text, re.M):
            cells = re.split(r"(?<!\\)\|", row)[1:-1]
            assert len(cells) != 4 or cells[3].strip(), f"{name}: {row} has no meaning in a docstring"


def test_links_lead_somewhere(built):
    texts = {DOCS / name: text for name, text in built.items() if name.endswith(".md")}
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", DOCS / "design.md", DOCS / "diffusers.md"):
        texts[path] = path.read_text()
    links = [(path, target) for path, text in texts.items() for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    assert any(path.name == "README.md" and path.parent == ROOT and "docs/systems" in t for path, t in links)
    for path, target in links:
        if not target.startswith("https://"):
            file, _, heading = target.partition("#")
            aim = (path.parent / file).resolve() if file else path
            assert aim.exists(), f"{path}: {target}"
            if heading:
                text = texts.get(aim) or aim.read_text()
                titles = [re.sub(r"[^\w -]", "", title.lower()) for title in re.findall(r"^#+ (.+)$", text, re.M)]
                assert heading in [title.replace(" ", "-") for title in titles], target


def test_the_python_of_every_page_runs(built, found, monkeypatch):
    """All but the training itself, which takes the arguments that it is given."""
    real = engine.run_recipe

    def run_recipe(*args: object, **settings: object) -> Trial:
        recipe, problem = inspect.signature(real).bind(*args, **settings).args
        return Trial(recipe, problem, nn.Identity(), Prior(Path()), 0)

    monkeypatch.setattr(engine, "run_recipe", run_recipe)
    for one in found:
        (block,) = re.findall(r"```python\n(.*?)```", built[f"systems/{one.system.id}.md"], re.S)
        assert len([line for line in block.splitlines() if line]) == 5
        space: dict[str, object] = {}
        exec(compile(block, f"{one.system.id}.md", "exec", dont_inherit=True), space)
        assert isinstance(space["student"], nn.Identity)
        assert pages.brief(space["recipe"].stages) == pages.brief(one.recipe.stages)
        assert space["problem"].name == one.recipe.claim.on


def test_a_page_says_what_was_measured_and_whether_it_still_holds(found, tree, tmp_path: Path, monkeypatch):
    one = entry(found, "sds")
    record = json.loads((catalogue.EVIDENCE / "sds.json").read_text())
    record |= {"figure": 0.125, "spread": 0.5, "seeds": {"7": 0.25}, "digest": catalogue.digest(record["sources"])}
    monkeypatch.setattr(catalogue, "EVIDENCE", tmp_path)

    def texts(**changes: object) -> tuple[str, str]:
        (tmp_path / "sds.json").write_text(json.dumps(record | changes))
        return pages.page(one, found, tree, {}), pages.index([one])

    page, index = texts()
    assert "**0.125 ± 0.5** | 0.25 | ≤ 0.5 |" in page and "| seed 7 |" in page and "Passed on" in page
    assert "0.125 ± 0.5 (≤ 0.5) on mixture2d |" in index and "tale" not in page + index
    page, index = texts(digest="another")
    assert "**Stale**" in page and ", stale |" in index
    page, index = texts(passed=False, figure=None)
    assert "**Failed** on" in page and "∞ ± 0.5 (≤ 0.5) on mixture2d, **failed** |" in index
    (tmp_path / "sds.json").unlink()
    assert "Not measured yet" in pages.page(one, found, tree, {}) and "not measured yet" in pages.index([one])
    (tmp_path / "sds.json").write_text(json.dumps({key: value for key, value in record.items() if key != "seeds"}))
    with pytest.raises(BadFile, match="lacks seeds"):
        pages.page(one, found, tree, {})


def test_writing_changes_only_what_differs_and_takes_old_pages_away(built, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(docs, "build", lambda: built)
    assert len(docs.write(tmp_path)) == len(built) and docs.write(tmp_path) == []
    (tmp_path / "systems" / "gone.md").write_text("")
    (tmp_path / "systems" / "sds.md").write_text("old")
    assert {path.name for path in docs.write(tmp_path)} == {"gone.md", "sds.md"}
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")} == set(built)


def test_damage_is_one_sentence(tmp_path: Path, monkeypatch, capsys):
    def damaged() -> dict[str, str]:
        raise BadFile("family-tree.toml: VSD is there twice.")

    monkeypatch.setattr(docs, "build", damaged)
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == "limbeck.docs: family-tree.toml: VSD is there twice.\n"


# What pages are made of


def test_a_subclass_explains_what_is_new_and_inherits_the_rest():
    class Base:
        """A base.

        Args:
            a: one.
            b: two
                and more.
        """

    class Other(Base):
        """Another, y = x.

        More prose
        over lines::

            y = x,
            z = y.

        Args:
            b: changed.

        Raises:
            ValueError: never.

        Source: here, arXiv 2209.14988.
        """

    doc = docstrings.of(Other)
    assert (doc.line, doc.body, doc.source) == (
        "Another, y = x.",
        ("More prose over lines:", "    y = x,\n    z = y."),
        "here, arXiv 2209.14988.",
    )
    assert docstrings.parse("A.\n\nArgs: those of `B`; c takes d.").body == ("c takes d.",)
    both = docstrings.parse("A.\n\nArgs: those of `B`.\n    c: d\n        e.")
    assert (both.body, both.args) == ((), {"c": "d e."})
    assert doc.args == {"a": "one.", "b": "changed."} and docstrings.of(Base).args["b"] == "two and more."


def test_arguments_tell_what_a_recipe_changed():
    """Against the objective's own default, wherever in its parts a setting is."""
    one = DMD(weight=replace(DMD().weight, alpha=-2.0), fake=Fake(critic=Critic(times=LogNormal(mean=1.0))))
    rows = {name.strip("`"): (here, usual) for name, here, usual, _ in pages.arguments([one])}
    assert rows["weight.alpha"] == ("`-2`", "`-1`") and rows["weight.sigma"] == ("`1`", "")
    assert rows["fake.critic.times"] == ("`LogNormal(mean=1)`", "`LogNormal()`") and rows["critic_steps"] == ("`5`", "")
    both = {name: here for name, here, *_ in pages.arguments([DMD(), DMD(critic_steps=3)])}
    assert both["`critic_steps`"] == "`5` / `3`"


def test_formulas_survive_markdown():
    assert markdown.prose("x_t*y* _a") == r"x_t\*y\* \_a"
    assert markdown.prose("``a*b|c`` < 2 & more") == "`a*b|c` &lt; 2 & more"
    assert markdown.table(["h"], [["|x|"]]).splitlines()[-1] == r"| \|x\| |"


# The family tree: what it says

GOOD = """
notation = "x"
becomes = [ { from = "VSD", to = "KL", when = "exact", test = "oracles/test_it.py::test_it" } ]
[score]
title = "Score"
[score.objectives]
VSD = "formula"
[score.others]
KL = "formula"
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("", "", None),
        ("test_it.py::test_it", "test_it.py::test_that", "oracles/test_it.py::test_that is no test"),
        ("test_it.py::test_it", "test_it.py::helper", "oracles/test_it.py::helper is no test"),
        ("test_it.py", "test_no.py", "oracles/test_no.py::test_it is no test"),
        ("VSD", "VSSD", "VSSD is no objective"),
        ("KL", "SDS", "SDS is an objective"),
        ('to = "KL"', 'to = "LK"', "LK is in no group"),
        ('KL = "formula"', 'KL = "formula"\nJS = ""', "JS has no edge"),
        ('to = "KL"', 'to = "VSD"', "KL has no edge"),
        ('"exact",', '"exact", why = "",', "an edge has from, to, when and test"),
        ("becomes = [ {", "becomes = [ {}, {", "an edge has from, to, when and test"),
        ("[score.others]", "[score.more]", "score has an unknown entry, more"),
        ("becomes = [", "becomes = ", "."),
        ("notation", "annotation", "notation"),
    ],
)
def test_the_table_is_checked(old: str, new: str, message: str | None, tmp_path: Path):
    (tmp_path / "oracles").mkdir()
    (tmp_path / "oracles" / "test_it.py").write_text("def test_it(): pass\n\ndef helper(): pass\n")
    (path := tmp_path / "tree.toml").write_text(GOOD.replace(old, new))
    if message is None:
        assert [*family.load(path, tmp_path).nodes] == ["VSD", "KL"]
        return
    with pytest.raises(BadFile, match=re.escape(message)):
        family.load(path, tmp_path)


@pytest.mark.parametrize(
    ("edges", "message"),
    [("VSD SDS, VSD SDS", "VSD → SDS is there twice"), ("VSD SDS, SDS DMD, DMD VSD", "VSD becomes itself")],
)
def test_edges_are_there_once_and_lead_down(edges: str, message: str, tmp_path: Path):
    (tmp_path / "test_it.py").write_text("def test_it(): pass")
    rows = ["{{from='{}', to='{}', when='', test='test_it.py::test_it'}}".format(*e.split()) for e in edges.split(", ")]
    names = "\n".join(f"{name} = ''" for name in dict.fromkeys(re.findall(r"\w+", edges)))
    table = f"notation = ''\nbecomes = [{', '.join(rows)}]\n[a]\ntitle = ''\n[a.objectives]\n{names}\n"
    (tmp_path / "tree.toml").write_text(table)
    with pytest.raises(BadFile, match=message):
        family.load(tmp_path / "tree.toml", tmp_path)


def test_pages_tell_the_edges_of_their_objectives(built, found, tree):
    links = pages.links(found)
    for one in found:
        text = built[f"systems/{one.system.id}.md"]
        told = text.partition("## Relation to others")[2].partition("## Run it")[0]
        others = {name: target for name, target in links.items() if target != f"{one.system.id}.md"}
        for edge in tree.edges:
            start, end = markdown.linked(edge.start, others), markdown.linked(edge.end, others)
            name = edge.test.partition("::")[2]
            line = f"- {start} becomes {end} ({markdown.escaped(edge.when)}), as [`{name}`]"
            assert (line in told) == bool({edge.start, edge.end} & (one.names | {one.system.id}))
    assert all(f"[`{edge.test.partition('::')[2]}`]" in built["family-tree.md"] for edge in tree.edges)


def test_an_objective_is_at_home_where_its_name_is_or_with_fewest_others(found):
    dmd2, sds = entry(found, "dmd2"), entry(found, "sds")
    twin = replace(sds, system=replace(sds.system, id="a-twin", year=2000))
    assert pages.home("SDS", [twin, sds]) is sds and pages.home("SDS", [twin]) is twin
    late = replace(twin.system, year=2030)
    gan = replace(
        twin, system=late, recipe=replace(sds.recipe, stages=(replace(sds.recipe.stages[0], objective=GAN()),))
    )
    assert pages.home("GAN", [dmd2, gan]) is gan and pages.links([dmd2, gan])["GAN"] == "a-twin.md"
    assert pages.links([dmd2, gan])["DMD"] == pages.links([dmd2])["dmd2"] == "dmd2.md"


# The family tree: what it looks like


def free(rects: list[Rect]) -> None:
    hits = [(a, b) for a, b in combinations(rects, 2) if a.overlaps(b)]
    assert not hits, f"{hits[0]} overlap"


def curve(path: list[layout.Point]) -> Iterator[layout.Point]:
    """Points of the cubic curves that go straight down at every point of the path, as they are drawn."""
    for (x, y), (a, b) in pairwise(path):
        for s in (i / 16 for i in range(17)):
            ease = 3 * s**2 - 2 * s**3
            half = (y + b) / 2
            bend = (1 - s) ** 3 * y + 3 * s * (1 - s) ** 2 * half + 3 * s**2 * (1 - s) * half + s**3 * b
            yield x + ease * (a - x), bend


def test_a_layout_keeps_boxes_and_labels_apart_and_edges_off_boxes():
    """Boxes with many edges, with long edges, in parts of their own, and without any."""
    names = [f"n{i}" for i in range(40)]
    sizes = {name: (40.0 + 37 * (i % 5), 46.0) for i, name in enumerate(names)}
    pairs = [(i, i // k) for i in range(1, 32) for k in (3, 5)] + [(33, 32), (35, 34), (36, 34)]
    edges = [Edge(names[i], names[j], (30.0 + 23 * (i % 4), 18.0)) for i, j in dict.fromkeys(pairs)]
    drawn = layout.draw(sizes, edges)
    assert set(drawn.boxes) == set(names) and len(drawn.labels) == len(drawn.paths) == len(edges)
    free([*drawn.boxes.values(), *drawn.labels])
    for edge, label, path in zip(edges, drawn.labels, drawn.paths, strict=True):
        start, end = drawn.boxes[edge.start], drawn.boxes[edge.end]
        assert [y for _, y in path] == sorted(y for _, y in path)
        assert (path[0][1], path[-1][1]) == (start.y + start.h / 2, end.y - end.h / 2)
        assert abs(path[0][0] - start.x) < start.w / 2 and abs(path[-1][0] - end.x) < end.w / 2
        assert any(abs(x - label.x) < 1 and abs(y - label.y) <= label.h for x, y in path)
        for x, y in curve(path):
            inside = [n for n, r in drawn.boxes.items() if abs(x - r.x) < r.w / 2 - 2 and abs(y - r.y) < r.h / 2 - 2]
            assert not inside, f"{edge.start} → {edge.end} runs through {inside[0]}"
    for rect in [*drawn.boxes.values(), *drawn.labels]:
        assert rect.x - rect.w / 2 >= -1 and rect.x + rect.w / 2 <= drawn.width + 1
        assert rect.y - rect.h / 2 >= -1 and rect.y + rect.h / 2 <= drawn.height + 1


def test_the_order_in_rows_has_no_needless_crossings():
    sizes = dict.fromkeys("abcdef", (40.0, 40.0))
    edges = [Edge(a, b, (20.0, 10.0)) for a, b in ("af", "be", "cd", "ae")]
    drawn = layout.draw(sizes, edges)
    lines = [(drawn.boxes[e.start].x, drawn.boxes[e.end].x) for e in edges]
    assert not any((a - c) * (b - d) < 0 for (a, b), (c, d) in combinations(lines, 2))


def wide(item: ElementTree.Element, size: float, *, bold: bool) -> float:
    """The width of a text in DejaVu Sans, the widest of the fonts it may be shown in."""
    font = FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
    spans = [(item.text, 1.0)] + [(span.text, 0.75 if "font-size" in span.attrib else 1.0) for span in item]
    paths = [TextPath((0, 0), text, size=size * scale, prop=font) for text, scale in spans if text and text.strip()]
    return sum(path.get_extents().width for path in paths)


@pytest.fixture(scope="module")
def shapes(built) -> dict[str, list[tuple[Rect, str]]]:
    """Rectangles and texts of the drawing, by their first class."""
    shapes: dict[str, list[tuple[Rect, str]]] = {}
    sizes = {"name": drawing.NAME, "formula": drawing.FORMULA, "label": drawing.LABEL, "title": drawing.TITLE}
    for item in ElementTree.fromstring(built["family-tree.svg"]).iter():
        kind, text = item.get("class", "").partition(" ")[0], "".join(item.itertext())
        x, y = float(item.get("x", 0)), float(item.get("y", 0))
        if item.tag.endswith("rect"):
            w, h = float(item.attrib["width"]), float(item.attrib["height"])
            shapes.setdefault(kind, []).append((Rect(x + w / 2, y + h / 2, w, h), ""))
        if item.tag.endswith("text"):
            width = wide(item, sizes[kind], bold=kind in ("name", "title"))
            middle = x + width / 2 if kind == "title" else x
            shapes.setdefault(kind, []).append((Rect(middle, y - sizes[kind] * 0.35, width, sizes[kind]), text))
    return shapes


def within(inner: Rect, outer: Rect) -> bool:
    across = abs(inner.x - outer.x) + inner.w / 2 <= outer.w / 2 + 0.1
    return across and abs(inner.y - outer.y) + inner.h / 2 <= outer.h / 2 + 0.1


def test_nothing_in_the_drawing_overlaps_or_leaves_it(built, shapes, tree):
    boxes, labels, frames = ([rect for rect, _ in shapes[kind]] for kind in ("box", "paper", "frame"))
    assert len(boxes) >= len(tree.nodes) - bool(tree.hub) and len(labels) == len(tree.drawn)
    titles = [rect for rect, _ in shapes["title"]]
    free([*boxes, *labels, *titles])
    free(frames)
    ((page, _),) = shapes["page"]
    assert ElementTree.fromstring(built["family-tree.svg"]).attrib["viewBox"] == f"0 0 {page.w:g} {page.h:g}"
    assert all(within(frame, page) for frame in frames)
    for kind in ("box", "paper", "title"):
        assert all(any(within(rect, frame) for frame in frames) for rect, _ in shapes[kind])


def test_every_text_keeps_to_its_box(shapes):
    for kind, around in (("name", "box"), ("formula", "box"), ("label", "paper")):
        for rect, text in shapes[kind]:
            assert any(within(rect, other) for other, _ in shapes[around]), f"{text} leaves its {around}"
    assert not any(a.overlaps(b) for (a, _) in shapes["name"] for (b, _) in shapes.get("formula", []))


def test_edges_of_the_hub_are_listed_and_not_drawn(tree):
    start = tree.edges[0].start
    hub = family.Tree(tree.notation, start, tree.groups, tree.nodes, tree.edges)
    names = [name for panel in drawing.panels(hub) for name in panel.drawing.boxes]
    assert start not in names and set(names) == set(tree.nodes) - {start}
    assert f"| {start} |" in family.page(hub, {}) and not any(start in (edge.start, edge.end) for edge in hub.drawn)
