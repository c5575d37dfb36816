"""Still pictures of the interactive figures, as SVG text: what is shown where no script runs."""

from html import escape

INK, SOFT, BLUE, ORANGE = "#1f2430", "#6b7280", "#2563eb", "#c2410c"
FONT = "ui-monospace,SFMono-Regular,Menlo,Consolas,monospace"


def text(x: float, y: float, words: str, *, size=13, fill=INK, anchor="start") -> str:
    """One line of text."""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{fill}" text-anchor="{anchor}" '
        f'xml:space="preserve">{escape(words)}</text>'
    )


def rect(x: float, y: float, width: float, height: float, fill=BLUE, opacity=1.0) -> str:
    """A filled rectangle."""
    return (
        f'<rect x="{x:.6g}" y="{y:.6g}" width="{width:.6g}" height="{height:.6g}" fill="{fill}" '
        f'fill-opacity="{opacity:.3g}" rx="2"/>'
    )


def line(points: list[tuple[float, float]], stroke=BLUE) -> str:
    """A line through points."""
    path = " ".join(f"{x:.4g},{y:.4g}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{stroke}" stroke-width="2"/>'


def picture(width: int, height: int, *parts: str) -> str:
    """The parts on white, so that they are legible on a dark page, too."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="{FONT}"><rect width="{width}" height="{height}" '
        f'fill="#ffffff" rx="6"/>{"".join(parts)}</svg>'
    )


def bars(labels: list[str], values: list[float], title: str) -> str:
    """Horizontal bars of probabilities, each with its label and number."""
    top = max(values) or 1.0
    parts = [text(12, 22, title)]
    for i, (label, value) in enumerate(zip(labels, values, strict=True)):
        y = 36 + 22 * i
        parts += [text(110, y + 13, label, anchor="end"), rect(120, y, 380 * value / top, 17)]
        parts.append(text(126 + 380 * value / top, y + 13, f"{value:.3f}", size=12, fill=SOFT))
    return picture(580, 46 + 22 * len(values), *parts)


def shaded(tokens: list[str], weights: list[float], title: str) -> str:
    """Tokens in lines, each behind it as much colour as its weight."""
    parts, x, y, top = [text(12, 22, title)], 12.0, 52.0, max(weights) or 1.0
    for i, token in enumerate(tokens):
        width = 8.2 * len(token) + 6
        if x + width > 610:
            x, y = 12.0, y + 28
        shade = weights[i] / top if i < len(weights) else 0.0
        parts.append(rect(x, y - 16, width, 22, opacity=0.75 * shade))
        parts.append(text(x + 3, y, token, fill=INK if i < len(weights) else "#9ca3af"))
        x += width + 1
    return picture(624, int(y + 22), *parts)


def table(rows: list[list[str]], title: str, widths: list[int]) -> str:
    """A table of short texts, columns aligned at the right."""
    parts = [text(12, 22, title)]
    for i, row in enumerate(rows):
        x = 12
        for cell, width in zip(row, widths, strict=True):
            x += width
            parts.append(text(x, 50 + 22 * i, cell, anchor="end", fill=INK if i else SOFT))
    return picture(sum(widths) + 30, 62 + 22 * len(rows), *parts)
