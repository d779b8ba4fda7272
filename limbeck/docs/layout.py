"""A layered drawing of a directed graph without cycles: rows, order in a row, and places, so that nothing overlaps.

Every label is an item of its own row between two rows of boxes (as in Gansner et al. 1993, "A technique for drawing
directed graphs"), so labels keep off boxes and off each other as boxes do. The order in the rows is by barycentres;
places are the weighted least squares of all edges' sideways steps under that order.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

Size = tuple[float, float]
Point = tuple[float, float]


@dataclass(frozen=True)
class Rect:
    """A rectangle by its centre."""

    x: float
    y: float
    w: float
    h: float

    def moved(self, dx: float, dy: float) -> "Rect":
        return replace(self, x=self.x + dx, y=self.y + dy)

    def overlaps(self, other: "Rect") -> bool:
        """Whether they share more than an edge.

        >>> Rect(0, 0, 2, 2).overlaps(Rect(2, 0, 2, 2)), Rect(0, 0, 2, 2).overlaps(Rect(1, 1, 2, 2))
        (False, True)
        """
        near = abs(self.x - other.x) < (self.w + other.w) / 2 - 1e-6
        return near and abs(self.y - other.y) < (self.h + other.h) / 2 - 1e-6


@dataclass(frozen=True)
class Edge:
    """An arrow from a box to a box, with the size of its label."""

    start: str
    end: str
    label: Size


@dataclass(frozen=True)
class Drawing:
    """Where everything is: boxes by name; for each edge, in order, its label and the points it goes through."""

    width: float
    height: float
    boxes: dict[str, Rect]
    labels: list[Rect]
    paths: list[list[Point]]

    def moved(self, dx: float, dy: float) -> "Drawing":
        boxes = {name: rect.moved(dx, dy) for name, rect in self.boxes.items()}
        paths = [[(x + dx, y + dy) for x, y in path] for path in self.paths]
        return replace(self, boxes=boxes, labels=[rect.moved(dx, dy) for rect in self.labels], paths=paths)


@dataclass(frozen=True, kw_only=True)
class Spacing:
    """Distances in pixels: between boxes of a row, between labels, between rows; and the width to keep to."""

    boxes: float = 26
    labels: float = 10
    rows: float = 20
    parts: float = 48
    width: float = 1160


@dataclass
class _Item:
    """A box, a label, or a bend of a long edge."""

    row: int
    w: float
    h: float
    gap: float
    x: float = 0.0
    up: list["_Item"] = field(default_factory=list["_Item"])
    down: list["_Item"] = field(default_factory=list["_Item"])
    bend: bool = False
    place: int = 0


def draw(boxes: Mapping[str, Size], edges: Sequence[Edge], spacing: Spacing | None = None) -> Drawing:
    """Lays out the parts that hang together one by one, and puts them side by side in rows, the largest first.

    >>> drawing = draw({"a": (50, 20), "b": (50, 20)}, [Edge("a", "b", (30, 10))])
    >>> drawing.boxes["a"].y < drawing.labels[0].y < drawing.boxes["b"].y
    True
    """
    spacing = spacing or Spacing()
    parts = sorted(_parts(list(boxes), edges), key=len, reverse=True)
    inside = [[i for i, edge in enumerate(edges) if edge.start in part] for part in parts]
    drawn = [
        _narrowest({name: boxes[name] for name in part}, [edges[i] for i in mine], spacing)
        for part, mine in zip(parts, inside, strict=True)
    ]
    corners, width, height = pack([(one.width, one.height) for one in drawn], spacing.width, spacing.parts)
    moved = [one.moved(x, y) for one, (x, y) in zip(drawn, corners, strict=True)]
    order = sorted((i, part, k) for part, mine in enumerate(inside) for k, i in enumerate(mine))
    return Drawing(
        width,
        height,
        {name: rect for one in moved for name, rect in one.boxes.items()},
        [moved[part].labels[k] for _, part, k in order],
        [moved[part].paths[k] for _, part, k in order],
    )


def pack(sizes: Sequence[Size], width: float, gap: float) -> tuple[list[Point], float, float]:
    """Top left corners of rectangles side by side in rows of this width, and the width and height of all.

    >>> pack([(5, 3), (5, 2), (5, 1)], width=12, gap=1)
    ([(0.0, 0.0), (6.0, 0.0), (0.0, 4.0)], 11.0, 5.0)
    """
    corners: list[Point] = []
    x = y = shelf = widest = 0.0
    limit = max([width, *(w for w, _ in sizes)])
    for w, h in sizes:
        if x and x + w > limit:
            x, y, shelf = 0.0, y + shelf + gap, 0.0
        corners.append((x, y))
        widest, shelf, x = max(widest, x + w), max(shelf, h), x + w + gap
    return corners, widest, y + shelf


def _parts(names: Sequence[str], edges: Iterable[Edge]) -> list[list[str]]:
    """Connected parts, names in their order."""
    part = {name: {name} for name in names}
    for edge in edges:
        if part[edge.start] is not part[edge.end]:
            joined = part[edge.start] | part[edge.end]
            part.update(dict.fromkeys(joined, joined))
    seen: dict[int, set[str]] = {id(one): one for one in part.values()}
    return [[name for name in names if name in one] for one in seen.values()]


def _narrowest(boxes: Mapping[str, Size], edges: Sequence[Edge], spacing: Spacing) -> Drawing:
    """The lowest drawing of those that keep to the width, which rows of boxes do not fix alone; else the narrowest."""
    tries = [_rows(boxes, edges, replace(spacing, width=share * spacing.width)) for share in (0.55, 0.65, 0.75, 1)]
    drawn = [_draw_part(boxes, edges, rows, spacing) for i, rows in enumerate(tries) if rows not in tries[:i]]
    return min(drawn, key=lambda one: (max(one.width, spacing.width), one.height))


def _draw_part(boxes: Mapping[str, Size], edges: Sequence[Edge], rows: Mapping[str, int], spacing: Spacing) -> Drawing:
    items = {name: _Item(2 * rows[name], w, h, spacing.boxes) for name, (w, h) in boxes.items()}
    chains = [_chain(items[edge.start], items[edge.end], edge, edges, spacing) for edge in edges]
    table = _ordered([*items.values(), *(item for chain, _ in chains for item in chain)])
    _place(table)
    left = min(item.x - item.w / 2 for row in table for item in row)
    heights = [max(item.h for item in row) for row in table]
    tops = _tops(table, heights, spacing)

    def rect(item: _Item) -> Rect:
        return Rect(round(item.x - left), round(tops[item.row] + heights[item.row] / 2), item.w, item.h)

    def through(item: _Item) -> list[Point]:
        """Straight down through its row, so that an edge moves sideways between rows only, clear of their boxes."""
        return [(rect(item).x, tops[item.row]), (rect(item).x, tops[item.row] + heights[item.row])]

    at = {name: rect(item) for name, item in items.items()}
    labels = [rect(label) for _, label in chains]
    right = max(r.x + r.w / 2 for r in [*at.values(), *labels])
    ports = _ports(edges, items, [chain for chain, _ in chains])
    paths: list[list[Point]] = []
    for (first, last), edge, (chain, _) in zip(ports, edges, chains, strict=True):
        a, b = at[edge.start], at[edge.end]
        ends = [(a.x + first, a.y + a.h / 2), (b.x + last, b.y - b.h / 2)]
        paths.append([ends[0], *(point for item in chain for point in through(item)), ends[1]])
    return Drawing(right, tops[-1] + heights[-1], at, labels, paths)


def _rows(boxes: Mapping[str, Size], edges: Sequence[Edge], spacing: Spacing) -> dict[str, int]:
    """The row of each box, counted from the top: every edge goes down, and rows are not much wider than they should be.

    Boxes are put from the bottom up, each as low as its targets and the width of the rows allow; then each moves
    towards the side where most of its edges are.
    """
    below: dict[str, list[str]] = {name: [e.end for e in edges if e.start == name] for name in boxes}
    above: dict[str, list[str]] = {name: [e.start for e in edges if e.end == name] for name in boxes}
    used: defaultdict[int, float] = defaultdict(float)
    level: dict[str, int] = {}

    def room(name: str, at: int) -> bool:
        return used[at] == 0 or used[at] + boxes[name][0] + spacing.boxes <= spacing.width

    def put(name: str, at: int) -> None:
        if name in level:
            used[level[name]] -= boxes[name][0] + spacing.boxes
        level[name] = at
        used[at] += boxes[name][0] + spacing.boxes

    while len(level) < len(boxes):
        ready = [name for name in boxes if name not in level and all(other in level for other in below[name])]
        name = max(ready, key=lambda one: len(above[one]))  # the first of the largest
        at = max((level[other] + 1 for other in below[name]), default=0)
        while not room(name, at):
            at += 1
        put(name, at)
    for _ in range(3):
        for name in boxes:
            if len(above[name]) > len(below[name]):
                top = min(level[other] for other in above[name]) - 1
                at = next((at for at in range(top, level[name], -1) if room(name, at)), level[name])
                put(name, at)
    highest = max(level.values())
    return {name: highest - at for name, at in level.items()}


def _chain(start: _Item, end: _Item, edge: Edge, edges: Sequence[Edge], spacing: Spacing) -> tuple[list[_Item], _Item]:
    """The items between two boxes, tied to each other, and the label among them: at the end with fewer edges."""
    bends = [_Item(row, 2, 2, spacing.labels, bend=True) for row in range(start.row + 1, end.row)]
    fan_out, fan_in = sum(e.start == edge.start for e in edges), sum(e.end == edge.end for e in edges)
    spot = 0 if fan_out <= fan_in else len(bends) - 1
    w, h = edge.label
    label = bends[spot] = _Item(bends[spot].row, w, h, spacing.labels)
    for a, b in zip([start, *bends], [*bends, end], strict=True):
        a.down.append(b)
        b.up.append(a)
    return bends, label


def _ordered(items: Sequence[_Item]) -> list[list[_Item]]:
    """Rows of items in an order with few crossings: the best that sweeps from three starts find."""
    depth = 1 + max(item.row for item in items)
    best: list[list[_Item]] = []
    fewest = float("inf")
    for start in (_walk(items, False), _walk(items, True), list(items)):
        table = [[item for item in start if item.row == row] for row in range(depth)]
        idle = 0
        for sweep in range(24):
            rows = range(1, depth) if sweep % 2 == 0 else range(depth - 2, -1, -1)
            for row in rows:
                _number(table)
                table[row].sort(key=lambda item: _barycentre(item, upwards=sweep % 2 == 0))
            idle += 1
            if (count := _crossings(table)) < fewest:
                best, fewest, idle = [list(row) for row in table], count, 0
            if fewest == 0 or idle > 5:
                break
    _number(best)
    return best


def _walk(items: Sequence[_Item], backwards: bool) -> list[_Item]:
    """Depth first, so that what hangs together starts side by side."""
    seen: dict[int, _Item] = {}
    stack = list(items) if backwards else list(reversed(items))
    while stack:
        item = stack.pop()
        if id(item) not in seen:
            seen[id(item)] = item
            stack += [*item.up, *item.down]
    return list(seen.values())


def _number(table: Sequence[Sequence[_Item]]) -> None:
    for row in table:
        for place, item in enumerate(row):
            item.place = place


def _barycentre(item: _Item, *, upwards: bool) -> float:
    others = item.up if upwards else item.down
    return sum(other.place for other in others) / len(others) if others else item.place


def _crossings(table: Sequence[Sequence[_Item]]) -> int:
    _number(table)
    total = 0
    for row in table:
        ends = [(item.place, other.place) for item in row for other in item.down]
        total += sum(a < c and b > d for a, b in ends for c, d in ends)
    return total


def _place(table: Sequence[Sequence[_Item]]) -> None:
    """Sideways places: each row in turn goes to its least squares between its neighbours, its order kept."""
    for row in table:
        x = 0.0
        for item in row:
            item.x = x + item.w / 2
            x += item.w + item.gap
    pulls = [[[(20.0 if i.bend and o.bend else 1.0, o) for o in (*i.up, *i.down)] for i in row] for row in table]
    for sweep in range(300):
        furthest = 0.0
        for k in range(len(table)) if sweep % 2 == 0 else reversed(range(len(table))):
            row = table[k]
            wishes = [_mean(mine) if mine else (item.x, 1e-3) for item, mine in zip(row, pulls[k], strict=True)]
            steps = [(a.w + b.w + a.gap + b.gap) / 2 for a, b in pairwise(row)]
            for item, x in zip(row, _separated(wishes, steps), strict=True):
                furthest = max(furthest, abs(x - item.x))
                item.x = x
        if furthest < 0.01:
            return


def _mean(pulls: Sequence[tuple[float, _Item]]) -> tuple[float, float]:
    """Where some items pull to, and how hard."""
    weight = total = 0.0
    for pull, item in pulls:
        weight += pull
        total += pull * item.x
    return total / weight, weight


def _separated(wishes: Sequence[tuple[float, float]], steps: Sequence[float]) -> list[float]:
    """argmin Σ w·(x − wish)² with x_{i+1} − x_i ≥ step_i: isotonic regression by pooling neighbours that collide.

    >>> _separated([(0.0, 1.0), (0.0, 1.0)], [2.0])
    [-1.0, 1.0]
    """
    offsets = [0.0]
    for step in steps:
        offsets.append(offsets[-1] + step)
    pools: list[tuple[float, float, int]] = []  # mean, weight, how many
    for (wish, weight), offset in zip(wishes, offsets, strict=True):
        pool = (wish - offset, weight, 1)
        while pools and pools[-1][0] > pool[0]:
            mean, heft, n = pools.pop()
            pool = ((mean * heft + pool[0] * pool[1]) / (heft + pool[1]), heft + pool[1], n + pool[2])
        pools.append(pool)
    flat = [mean for mean, _, n in pools for _ in range(n)]
    return [x + offset for x, offset in zip(flat, offsets, strict=True)]


def _tops(table: Sequence[Sequence[_Item]], heights: Sequence[float], spacing: Spacing) -> list[float]:
    """The top of each row; below rows whose edges run far sideways there is more room."""
    tops = [0.0]
    for row, height in zip(table[:-1], heights, strict=False):
        run = max((abs(item.x - other.x) for item in row for other in item.down), default=0.0)
        tops.append(tops[-1] + height + spacing.rows + round(min(run / 12, 28)))
    return tops


def _ports(
    edges: Sequence[Edge], items: Mapping[str, _Item], chains: Sequence[Sequence[_Item]]
) -> list[tuple[float, float]]:
    """Where along its boxes each edge leaves and arrives, off their centres: side by side, in the order of the row."""
    found = [[0.0, 0.0] for _ in edges]
    for name, item in items.items():
        leaving = sorted((c[0].place, i) for i, c in enumerate(chains) if edges[i].start == name)
        coming = sorted((c[-1].place, i) for i, c in enumerate(chains) if edges[i].end == name)
        for side, ends in enumerate((leaving, coming)):
            step = min(22.0, (item.w - 24) / max(1, len(ends) - 1))
            for k, (_, i) in enumerate(ends):
                found[i][side] = (k - (len(ends) - 1) / 2) * step
    return [(a, b) for a, b in found]
