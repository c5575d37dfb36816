"""Sphinx extension: formulas become MathML when the book is built, so a page needs no script.

The font is STIX Two Math from the package ziamath, cut down to what mathematics needs.
"""

import re
from logging import ERROR, getLogger
from pathlib import Path

from docutils import nodes
from fontTools import subset
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging

FONT = "STIXTwoMath-Regular.ttf"
KEPT = [  # Latin, Greek, punctuation, letter-like signs, arrows and operators, brackets, alphabets
    (0x20, 0x7F), (0xA0, 0x100), (0x370, 0x400), (0x2000, 0x2070), (0x20D0, 0x20F0),
    (0x2100, 0x2150), (0x2190, 0x21A0), (0x21D0, 0x21D6), (0x2200, 0x2300), (0x2308, 0x230C),
    (0x27E6, 0x27EC), (0x1D400, 0x1D4D0), (0x1D538, 0x1D56C), (0x1D6A8, 0x1D71C),
    (0x1D7CE, 0x1D7D8),
]  # fmt: skip
FUNCTIONS = r"(<mi[^>]*>(?:ln|log|exp|sin|cos|tanh|max|min)</mi>)(?=<m(?:i|n|sup|sub|row|sqrt)\b)"


def to_mathml(latex: str, display: str) -> str:
    """MathML of a formula. Raises ValueError for a command that is not known."""
    text = convert(latex, display=display)
    if left := re.search(r"\\[A-Za-z]+", text):
        raise ValueError(f"the formula {latex!r}: {left[0]} is not known")
    text = text.replace("<mo>&#x0221E;</mo>", "<mi>&#x0221E;</mi>")  # a number, not an operator
    text = re.sub(r"<mo>(&#x0(?:2016|007C);)</mo>", r'<mo stretchy="false">\1</mo>', text)
    thin = '<mspace width="0.1667em"></mspace>'
    return re.sub(FUNCTIONS, rf"\1{thin}", text)  # ln 5, not ln5


def visit(self, node: nodes.Element, display: str) -> None:
    """Write a formula; a displayed one scrolls by itself where the window is narrower."""
    try:
        text = to_mathml(node.astext(), display)
    except Exception as error:
        logging.getLogger(__name__).warning("%s", error, location=node)
        text = f"<code>{self.encode(node.astext())}</code>"
    if display == "block":
        text = f'<div class="formula" tabindex="0" role="group" aria-label="Formula">{text}</div>'
    self.body.append(text)
    raise nodes.SkipNode


def write_font(app: Sphinx, error: Exception | None) -> None:
    """Put the font, cut down, beside the pages."""
    if error:
        return
    import ziamath

    getLogger("fontTools").setLevel(ERROR)

    folder = Path(app.outdir) / "_static"
    options = subset.Options(flavor="woff", layout_features=["ssty", "dtls"], notdef_outline=True)
    font = subset.load_font(str(Path(ziamath.__file__).parent / "fonts" / FONT), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=[code for first, end in KEPT for code in range(first, end)])
    subsetter.subset(font)
    subset.save_font(font, str(folder / "math.woff"), options)


def setup(app: Sphinx) -> dict:
    """Register the renderer and the font."""
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(lambda self, node: visit(self, node, "inline"), None),
        block_renderers=(lambda self, node: visit(self, node, "block"), None),
    )
    app.connect("build-finished", write_font)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
