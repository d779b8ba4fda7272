"""Curves as SVG, inside a page of its own: drawn by hand, so that it needs nothing to be seen."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

POINTS = 120
"""Points of a curve: more ticks than that are averaged."""


def el(tag: str, *content: "str | Element | Mapping[str, str]", **attributes: str) -> Element:
    """An element with text and elements in it; attributes by name, with ``_`` for ``-``, or as a mapping."""
    element = Element(tag, {key.strip("_").replace("_", "-"): value for key, value in attributes.items()})
    for part in content:
        if isinstance(part, Element):
            element.append(part)
        elif isinstance(part, Mapping):
            element.attrib |= part
        elif len(element):
            element[-1].tail = (element[-1].tail or "") + part
        else:
            element.text = (element.text or "") + part
    return element


@dataclass
class Series:
    """A loss or norm over a run: ticks from its start, with None for what was not finite."""

    x: list[int]
    y: list[float | None]


WIDE, HIGH = 350, 190
LEFT, RIGHT, TOP, BOTTOM = 50, 6, 16, 24


def panel(name: str, series: Series, borders: Sequence[tuple[str, int, int]], kind: str) -> Element:
    """One curve: means over neighbouring ticks as a line, what they range over as a band behind it."""
    buckets = thin(series)
    values = [v for bucket in buckets for v in bucket[1:] if v is not None]
    last = next((f"{mean:.3g}" for _, mean, *_ in reversed(buckets) if mean is not None), "not finite")
    caption = el("figcaption", el("b", name), el("span", f"ends at {last}", class_="muted"))
    if not values:
        return el("figure", caption, el("p", "No value was finite.", class_="warn"), class_=f"panel {kind}")
    across = Axis(0, max(1, borders[-1][2]), LEFT, WIDE - RIGHT, False)
    up = Axis.of(values, HIGH - BOTTOM, TOP)
    plot = el("svg", {"viewBox": f"0 0 {WIDE} {HIGH}", "role": "img", "aria-label": f"{name} over ticks"})
    plot.extend(_grid(across, up))
    plot.extend(_stage_marks(borders, across))
    for piece in _pieces(buckets):
        band = [(x, hi) for x, _, _, hi in piece] + [(x, lo) for x, _, lo, _ in reversed(piece)]
        plot.append(el("path", d=_path(band, across, up) + "Z", class_="band"))
        plot.append(el("path", d=_path([(x, mean) for x, mean, *_ in piece], across, up), class_="line"))
    where = "logarithmic" if up.log else "linear"
    plot.append(el("title", f"{name}: from {min(values):.4g} to {max(values):.4g}; {where} scale"))
    return el("figure", caption, plot, class_=f"panel {kind}")


Bucket = tuple[float, float | None, float | None, float | None]
"""Where, mean, least and most; None where no value was finite."""


def thin(series: Series, points: int = POINTS) -> list[Bucket]:
    """At most so many points of a series, which is not empty.

    >>> thin(Series([1, 2, 3, 4], [1.0, 3.0, None, 2.0]), 2)
    [(1.5, 2.0, 1.0, 3.0), (3.5, 2.0, 2.0, 2.0)]
    """
    size = math.ceil(len(series.x) / points)
    found: list[Bucket] = []
    for k in range(0, len(series.x), size):
        x, y = series.x[k : k + size], [v for v in series.y[k : k + size] if v is not None]
        centre = sum(x) / len(x)
        found.append((centre, math.fsum(y) / len(y), min(y), max(y)) if y else (centre, None, None, None))
    return found


def _pieces(buckets: Iterable[Bucket]) -> list[list[tuple[float, float, float, float]]]:
    """Runs of buckets without a gap."""
    found: list[list[tuple[float, float, float, float]]] = [[]]
    for x, mean, lo, hi in buckets:
        if mean is None or lo is None or hi is None:
            found.append([])
        else:
            found[-1].append((x, mean, lo, hi))
    return [piece for piece in found if piece]


def _path(points: Sequence[tuple[float, float]], across: "Axis", up: "Axis") -> str:
    if len(points) == 1:  # a dot
        points = [points[0]] * 2
    return "M" + "L".join(f"{across(x):.1f} {up(y):.1f}" for x, y in points)


@dataclass(frozen=True)
class Axis:
    """Values lo … hi onto pixels start … end, by themselves or by their logarithms."""

    lo: float
    hi: float
    start: float
    end: float
    log: bool

    @classmethod
    def of(cls, values: Sequence[float], start: float, end: float) -> "Axis":
        """Wide enough for values; logarithmic where they are positive and range over a factor of 20."""
        lo, hi = min(values), max(values)
        if lo > 0 and hi > 20 * lo:
            return cls(lo, hi, start, end, True)
        lo, hi = (0.0, hi) if 0 < lo < 0.4 * hi else (lo, hi)
        pad = 0.05 * (hi - lo) or 0.05 * abs(hi) or 1.0
        return cls(lo if lo == 0 else lo - pad, hi + pad, start, end, False)

    def __call__(self, value: float) -> float:
        lo, hi, value = (math.log(v) for v in (self.lo, self.hi, value)) if self.log else (self.lo, self.hi, value)
        return self.start + (value - lo) / (hi - lo) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values within: powers of ten, with 2 and 5 where they are few; or about so many at equal distances.

        >>> Axis(0, 1200, 0, 1, False).ticks(), Axis(0.004, 3, 0, 1, True).ticks()
        ([0, 200, 400, 600, 800, 1000, 1200], [0.01, 0.1, 1])
        """
        if self.log:
            powers = range(math.floor(math.log10(self.lo)), math.ceil(math.log10(self.hi)) + 1)
            factors = (1,) if len(powers) > 3 else (1, 2, 5)
            step = max(1, len(powers) // (count + 1))
            found = [f * (10**p if p >= 0 else 1 / 10**-p) for p in powers if p % step == 0 for f in factors]
            return [v for v in found if self.lo <= v <= self.hi]
        rough = (self.hi - self.lo) / count
        power = 10 ** math.floor(math.log10(rough))
        step = next(f * power for f in (1, 2, 5, 10) if f * power >= 0.7 * rough)
        first, last = math.ceil(self.lo / step - 1e-9), math.floor(self.hi / step + 1e-9)
        return [_round(k * step) for k in range(first, last + 1)]


def _round(value: float) -> float:
    value = float(f"{value:.10g}")
    return int(value) if value == int(value) else value


def _grid(across: Axis, up: Axis) -> list[Element]:
    found = []
    for value in up.ticks():
        y = f"{up(value):.1f}"
        found.append(el("path", d=f"M{LEFT} {y}H{WIDE - RIGHT}", class_="grid"))
        found.append(el("text", _short(value), x=str(LEFT - 6), y=y, dy="0.35em", text_anchor="end"))
    for value in across.ticks(4):
        x = across(value)
        anchor = "end" if x > WIDE - RIGHT - 20 else "middle"
        found.append(el("text", _short(value), x=f"{x:.1f}", y=str(HIGH - BOTTOM + 16), text_anchor=anchor))
    found.append(el("path", d=f"M{LEFT} {HIGH - BOTTOM}H{WIDE - RIGHT}", class_="axis"))
    return found


def _short(value: float) -> str:
    """A number for an axis.

    >>> _short(20000), _short(1500), _short(0.01), _short(1e-6), _short(2_500_000)
    ('20k', '1500', '0.01', '1e-6', '2.5M')
    """
    for unit, name in ((1e6, "M"), (1e4, "k")):
        if unit <= abs(value) < 1e9:
            return f"{value / (1e6 if name == 'M' else 1e3):g}{name}"
    return f"{value:g}".replace("e-0", "e-").replace("e+0", "e")


def _stage_marks(borders: Sequence[tuple[str, int, int]], across: Axis) -> list[Element]:
    if len(borders) == 1:
        return []
    found = []
    for name, first, last in borders:
        x = across(first)
        if first:
            found.append(el("path", d=f"M{x:.1f} {TOP}V{HIGH - BOTTOM}", class_="border"))
        if across(last) - x > 6.5 * len(name):  # where there is room
            found.append(el("text", name, x=f"{x + 4:.1f}", y=str(TOP - 5)))
    return found
