"""Charts without a library: curves in a terminal (braille dots) and as inline SVG in a web page."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

BRAILLE = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # dot by row and column


@dataclass
class Curve:
    """Points of one series. `kind` is line, faint (drawn thin), dots, or band (from ys to tops)."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    kind: str = "line"
    tops: Sequence[float] = ()


@dataclass
class Panel:
    """One chart: curves over steps, horizontal lines (label → value), and marks (step → label)."""

    title: str
    curves: list[Curve]
    lines: dict[str, float] = field(default_factory=dict)
    marks: dict[int, str] = field(default_factory=dict)


def thinned(curve: Curve, most: int = 500) -> Curve:
    """At most `most` points, so that a page stays small; each is a mean of neighbours."""
    count = -(-len(curve.xs) // most)
    if count <= 1:
        return curve
    columns = [
        [sum(part := values[i : i + count]) / len(part) for i in range(0, len(values), count)]
        for values in (curve.xs, curve.ys, curve.tops)
    ]
    return Curve(curve.name, columns[0], columns[1], curve.kind, columns[2])


def span(panel: Panel) -> tuple[float, float, float, float]:
    """The axes' limits: left, right, bottom, top.

    The highest 2 % of a long curve may be cut off, so that a few jumps do not flatten the rest.
    """
    drawn = [c for c in panel.curves if len(c.xs) and c.kind != "faint"]
    drawn = drawn or [c for c in panel.curves if len(c.xs)]
    values = sorted(y for c in drawn if c.kind != "band" for y in c.ys if math.isfinite(y))
    if not values:
        return 0, 1, 0, 1
    left = min(min(c.xs) for c in drawn if c.kind != "band")
    right = max(max(c.xs) for c in drawn if c.kind != "band")
    low, high = values[0], values[-1 - len(values) // 50]
    for value in panel.lines.values():
        low, high = min(low, value), max(high, value)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1
    return left, max(right, left + 1), low - room, high + room


def tick(value: float) -> str:
    """A number on an axis."""
    if value and abs(value) < 0.001:
        return f"{value:.0e}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


# ---- in a terminal


def text_chart(panel: Panel, width: int = 80, height: int = 12, plain: bool = False) -> list[str]:
    """The panel as lines of text: braille dots, or with `plain` only ASCII characters."""
    left, right, bottom, top = span(panel)
    room = max(len(tick(top)), len(tick(bottom))) + 1
    columns, (dx, dy) = max(width - room - 1, 10), ((1, 1) if plain else (2, 4))
    cells = [[0] * columns for _ in range(height)]

    def dot(x: float, y: float) -> None:
        column = round((x - left) / (right - left) * (columns * dx - 1))
        row = round((top - min(max(y, bottom), top)) / (top - bottom) * (height * dy - 1))
        if 0 <= column < columns * dx:
            cells[row // dy][column // dx] |= BRAILLE[row % dy][column % dx]

    for curve in panel.curves:
        if curve.kind in ("line", "dots"):
            for x, y in zip(curve.xs, curve.ys, strict=True):
                if math.isfinite(y):
                    dot(x, y)
    for value in panel.lines.values():
        for column in range(0, columns * dx, 3 * dx):
            dot(left + column / (columns * dx) * (right - left), value)
    show = (lambda c: "*" if c else " ") if plain else (lambda c: chr(0x2800 + c) if c else " ")
    rows = ["".join(map(show, row)).rstrip() for row in cells]
    edge = {0: tick(top), height - 1: tick(bottom)}
    bar = "|" if plain else "│"
    chart = [f"{edge.get(i, ''):>{room}}{bar}{row}" for i, row in enumerate(rows)]
    ends = f"{tick(left)}{tick(right):>{columns - len(tick(left))}}"
    return [panel.title, *chart, " " * (room + 1) + ends]


# ---- in a web page

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --quiet: #68717c; --grid: #dfe3e8;
  --first: #1f6fb4; --second: #c4501b; --band: #1f6fb422; --good: #1a7f37; --bad: #b3261e }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e8eaed; --quiet: #98a1ac;
  --grid: #30363d; --first: #6cb2ee; --second: #f0905c; --band: #6cb2ee2e; --good: #56c271;
  --bad: #ff8a80 } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 58rem; margin: 2rem auto; padding: 0 1rem;
  background: var(--paper); color: var(--ink) }
.healthy { color: var(--good) } .sick { color: var(--bad) } .quiet { color: var(--quiet) }
svg { width: 100%; height: auto; margin: .5rem 0 } text { font: 12px system-ui; fill: var(--quiet) }
.line { fill: none; stroke: var(--first); stroke-width: 1.8 } .dots { fill: var(--second) }
.faint { fill: none; stroke: var(--first); stroke-width: .7; opacity: .4 }
.band { fill: var(--band) } .grid { stroke: var(--grid) }
.level { stroke: var(--quiet); stroke-dasharray: 5 4 } .mark { stroke: var(--bad) }
text.mark { stroke: none; fill: var(--bad) } text.title { font-size: 14px; fill: var(--ink) }
"""
WIDE, HIGH, EDGE, HEAD, FOOT = 900, 260, 64, 28, 24  # of a chart, in SVG units


def svg_chart(panel: Panel) -> str:
    """The panel as an SVG element, coloured by STYLE."""
    left, right, bottom, top = span(panel)

    def at(x: float, y: float) -> str:
        across = EDGE + (x - left) / (right - left) * (WIDE - EDGE - 10)
        y = min(max(y, bottom), top)
        return f"{across:.1f},{HEAD + (top - y) / (top - bottom) * (HIGH - HEAD - FOOT):.1f}"

    parts = []
    for i in range(5):
        value = bottom + i / 4 * (top - bottom)
        (x1, y1), (x2, _) = at(left, value).split(","), at(right, value).split(",")
        parts.append(f'<line class="grid" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y1}"/>')
        parts.append(f'<text x="{EDGE - 6}" y="{y1}" dy="4" text-anchor="end">{tick(value)}</text>')
        step = left + i / 4 * (right - left)
        x = at(step, bottom).split(",")[0]
        anchor = "end" if i == 4 else "middle"
        parts.append(f'<text x="{x}" y="{HIGH - 6}" text-anchor="{anchor}">{tick(step)}</text>')
    parts += [svg_curve(thinned(curve), at, right) for curve in panel.curves if len(curve.xs)]
    for label, value in panel.lines.items():
        (x1, y), (x2, _) = at(left, value).split(","), at(right, value).split(",")
        parts.append(f'<line class="level" x1="{x1}" y1="{y}" x2="{x2}" y2="{y}"/>')
        parts.append(
            f'<text x="{x2}" y="{y}" dy="-4" text-anchor="end">{html.escape(label)}</text>'
        )
    for step, label in panel.marks.items():
        x = at(step := min(max(step, left), right), top).split(",")[0]
        name, late = html.escape(label), step > (left + right) / 2
        side = 'dx="-4" text-anchor="end"' if late else 'dx="4"'
        parts.append(f'<line class="mark" x1="{x}" y1="{HEAD}" x2="{x}" y2="{HIGH - FOOT}"/>')
        parts.append(f'<text class="mark" x="{x}" y="{HEAD}" {side} dy="12">{name}</text>')
    title = html.escape(panel.title)
    head = f'<text class="title" x="{EDGE}" y="16">{title}</text>'
    label = f'role="img" aria-label="{title}" viewBox="0 0 {WIDE} {HIGH}"'
    return f"<svg {label}>{head}{''.join(parts)}</svg>"


def svg_curve(curve: Curve, at, right: float) -> str:
    """One series as SVG shapes; `at` places a point, `right` is the last step shown."""
    points = [at(x, y) for x, y in zip(curve.xs, curve.ys, strict=True) if math.isfinite(y)]
    if curve.kind == "dots":
        pairs = (point.split(",") for point in points)
        return "".join(f'<circle class="dots" cx="{x}" cy="{y}" r="3"/>' for x, y in pairs)
    if curve.kind == "band":
        inside = [i for i, x in enumerate(curve.xs) if x <= right]
        lower = [at(curve.xs[i], curve.ys[i]) for i in inside]
        upper = [at(curve.xs[i], curve.tops[i]) for i in reversed(inside)]
        return f'<polygon class="band" points="{" ".join(lower + upper)}"/>'
    return f'<polyline class="{curve.kind}" points="{" ".join(points)}"/>'


def page(title: str, body: list[str], seconds: int = 0) -> str:
    """A web page that needs nothing else; with `seconds`, it reloads itself that often."""
    again = f'<meta http-equiv="refresh" content="{seconds}">' if seconds else ""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width">{again}'
    head += f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    return (
        f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'
    )
