"""The family tree as an SVG: one file, no fonts or scripts, in the reader's light or dark."""

import re
from dataclasses import dataclass
from unicodedata import combining
from xml.sax.saxutils import escape, quoteattr

from limbeck.docs.family import Becomes, Node, Tree
from limbeck.docs.layout import Drawing, Edge, Point, Rect, Size, draw, pack

NAME, FORMULA, LABEL, TITLE = 15.0, 13.0, 12.5, 17.0
"""Sizes of type."""
MARGIN, INSET, HEAD = 20, 22, 46
"""Around the panels, inside them, and for a panel's title."""
WIDTH = 1240
"""What panels side by side should keep to."""

COLOURS = (
    ("#e3edfb", "#3568b0", "#1d2f4a", "#86b2f2"),
    ("#fdebd7", "#b5651d", "#42301c", "#f0b072"),
    ("#e0f2e6", "#2f8057", "#1b3a2a", "#7fd1a5"),
    ("#f0e6f9", "#7d4bb0", "#352448", "#c9a2f0"),
    ("#fae3e8", "#b03a58", "#452330", "#f08fa8"),
    ("#e2f1f3", "#2b7c88", "#193a40", "#7cccd8"),
)
"""Of each group in turn: fill and line in light, fill and line in dark."""


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """The width that a text needs at most in common sans-serif fonts, in pixels; subscripts are smaller.

    >>> text_width("x_t", 10) < text_width("xtt", 10)
    True
    """
    width = sum(_em(char) * (0.75 if below else 1.0) for piece, below in pieces(text) for char in piece)
    return width * size * (1.08 if bold else 1.0)


def _em(char: str) -> float:
    if combining(char):
        return 0.0
    if char in " .,:;'!|iIjlft()[]·":
        return 0.39
    if char in "mwMW→∞−+=<>≤≥≈‖⟨⟩∇∘":
        return 0.88
    return 0.75 if char.isupper() else 0.64


def pieces(text: str) -> list[tuple[str, bool]]:
    """A text in pieces of (characters, whether they stand below the line): one character, or those in braces.

    >>> pieces("ε_T − x_{t+d}")
    [('ε', False), ('T', True), (' − x', False), ('t+d', True)]
    """
    found = re.split(r"_(\{[^}]*\}|\S)", text)
    return [(piece.strip("{}") if i % 2 else piece, bool(i % 2)) for i, piece in enumerate(found) if piece]


@dataclass(frozen=True)
class Panel:
    """A group: its boxes, the edges that leave them, and the boxes where those end."""

    title: str
    group: str
    frame: Rect
    drawing: Drawing
    edges: list[Becomes]


def panels(tree: Tree) -> list[Panel]:
    """The groups, each in its frame. A box of another group stands in a panel as a guest."""
    groups = {group: [e for e in tree.drawn if tree.nodes[e.start].group == group] for group in tree.groups}
    drawn = {group: _draw(tree, group, edges) for group, edges in groups.items()}
    titles = [text_width(tree.groups[group], TITLE, bold=True) for group in groups]
    sizes = [
        (max(one.width, title) + 2 * INSET, one.height + INSET + HEAD)
        for one, title in zip(drawn.values(), titles, strict=True)
    ]
    corners, *_ = pack(sizes, WIDTH, MARGIN)
    return [
        Panel(
            tree.groups[group],
            group,
            Rect(MARGIN + x + w / 2, MARGIN + y + h / 2, w, h),
            drawn[group].moved(MARGIN + x + (w - drawn[group].width) / 2, MARGIN + y + HEAD),
            edges,
        )
        for (group, edges), (x, y), (w, h) in zip(groups.items(), corners, sizes, strict=True)
    ]


def _draw(tree: Tree, group: str, edges: list[Becomes]) -> Drawing:
    wanted = {node.name for node in tree.nodes.values() if node.group == group} | {edge.end for edge in edges}
    boxes = {name: _box(node, edges) for name, node in tree.nodes.items() if name in wanted - {tree.hub}}
    return draw(boxes, [Edge(e.start, e.end, (round(text_width(e.when, LABEL)) + 8, LABEL + 6)) for e in edges])


def _box(node: Node, edges: list[Becomes]) -> Size:
    """Wide enough for its text and for the heads of its arrows."""
    text = max(text_width(node.name, NAME, bold=True), text_width(node.formula, FORMULA))
    arrows = max(sum(edge.end == node.name for edge in edges), sum(edge.start == node.name for edge in edges))
    return max(round(text) + 22, 12 * arrows + 12), 46 if node.formula else 32


def svg(tree: Tree) -> str:
    """The drawing."""
    shown = panels(tree)
    width = max(panel.frame.x + panel.frame.w / 2 for panel in shown) + MARGIN
    height = max(panel.frame.y + panel.frame.h / 2 for panel in shown) + MARGIN
    groups = list(tree.groups)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img" aria-label="The family tree of special cases">',
        f"<style>{_style(len(groups))}</style>",
        f'<rect class="page" width="{width:g}" height="{height:g}" rx="14"/>',
    ]
    for panel in shown:
        out += _panel(panel, tree, f"g{groups.index(panel.group)}")
    return "\n".join([*out, "</svg>"]) + "\n"


def _panel(panel: Panel, tree: Tree, colour: str) -> list[str]:
    frame = panel.frame
    out = [_rect("frame", frame)]
    left, top = frame.x - frame.w / 2, frame.y - frame.h / 2
    out.append(_text(f"title {colour}", panel.title, left + INSET, top + 28))
    for edge, path in zip(panel.edges, panel.drawing.paths, strict=True):
        title = escape(f"{edge.start} becomes {edge.end}, when {edge.when}: {edge.test}")
        out.append(f'<g class="{colour}"><title>{title}</title>{_arrow(path)}</g>')
    for edge, label in zip(panel.edges, panel.drawing.labels, strict=True):
        out += [_rect("paper", label), _text("label", edge.when, label.x, label.y + LABEL * 0.35)]
    for name, rect in panel.drawing.boxes.items():
        out += _node(tree.nodes[name], rect, list(tree.groups), guest=tree.nodes[name].group != panel.group)
    return out


def _node(node: Node, rect: Rect, groups: list[str], *, guest: bool) -> list[str]:
    kind = f"box g{groups.index(node.group)}" + " other" * (not node.objective) + " guest" * guest
    name = _text("name", node.name, rect.x, rect.y + (-4 if node.formula else NAME * 0.35))
    formula = [_text("formula", node.formula, rect.x, rect.y + 15)] if node.formula else []
    return [f"<g data-node={quoteattr(node.name)}>", _rect(kind, rect), name, *formula, "</g>"]


def _rect(kind: str, rect: Rect) -> str:
    x, y = rect.x - rect.w / 2, rect.y - rect.h / 2
    rx = 8 if rect.h > 20 else 3
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{rect.w:.1f}" height="{rect.h:.1f}" rx="{rx}"/>'


def _text(kind: str, text: str, x: float, y: float) -> str:
    body, low = "", False
    for piece, below in pieces(text):
        shift = ' dy="3.5" font-size="75%"' if below and not low else ' dy="-3.5"' if low and not below else ""
        body += f"<tspan{shift}>{escape(piece)}</tspan>" if shift else escape(piece)
        low = below
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{body}</text>'


def _arrow(path: list[Point]) -> str:
    """A curve that goes straight down at every point, and its head."""
    (x, y), *between, (a, b) = path
    line = f"M{x:.1f} {y:.1f}"
    for end in [*between, (a, b - 7)]:
        half = (y + end[1]) / 2
        bow = f"C{x:.1f} {half:.1f} {end[0]:.1f} {half:.1f} {end[0]:.1f} {end[1]:.1f}"
        line += f"V{end[1]:.1f}" if abs(x - end[0]) < 0.05 else bow
        x, y = end
    return f'<path class="line" d="{line}"/><path class="head" d="M{a:.1f} {b:.1f}l-4.5 -9h9z"/>'


def _style(groups: int) -> str:
    light = _colours(groups, 0, page="#ffffff", frame="#d5dbe3", ink="#1b2129", soft="#4a5563")
    dark = _colours(groups, 2, page="#12161c", frame="#39424e", ink="#eef2f6", soft="#b4bfcc")
    return (
        'text{font-family:"Helvetica Neue",Helvetica,Arial,"DejaVu Sans",sans-serif;text-anchor:middle}'
        f".name{{font-size:{NAME}px;font-weight:700}}.formula{{font-size:{FORMULA}px}}.label{{font-size:{LABEL}px}}"
        f".title{{font-size:{TITLE}px;font-weight:700;text-anchor:start}}.frame{{fill:none}}"
        ".box{stroke-width:1.4}.line{fill:none;stroke-width:1.5;opacity:.8}.other{stroke-dasharray:5 4}"
        f"{light}@media(prefers-color-scheme:dark){{{dark}}}"
    )


def _colours(groups: int, of: int, *, page: str, frame: str, ink: str, soft: str) -> str:
    rules = [
        f".page{{fill:{page};stroke:{frame}}}.frame{{stroke:{frame}}}.paper{{fill:{page}}}",
        f".name{{fill:{ink}}}.formula,.label{{fill:{soft}}}",
    ]
    for i in range(groups):
        fill, line = COLOURS[i % len(COLOURS)][of : of + 2]
        rules.append(f".box.g{i}{{fill:{fill};stroke:{line}}}.title.g{i}{{fill:{line}}}")
        rules.append(f".g{i} .line{{stroke:{line}}}.g{i} .head{{fill:{line}}}")
    return "".join(rules) + f".box.other{{fill:{page}}}"
