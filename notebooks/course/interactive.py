"""A figure that a reader can operate: HTML with its script, and a still picture where none runs.

The HTML needs no server and no library; it holds the numbers that the notebook computed. It is the
same at every run: no random names, no times.
"""

import base64
import json
from html import escape
from pathlib import Path

SCRIPTS = Path(__file__).with_name("scripts")
WITHOUT_SCRIPTS = "The figure reacts to mouse and keyboard where scripts run; this is its picture."


def script_json(value) -> str:
    """JSON that may stand inside a <script>: no text of it can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def find_root(name: str) -> str:
    """JavaScript that finds the figure's <div>; some notebooks run scripts outside a cell."""
    return (
        'const root = document.currentScript?.closest(".course-figure") ?? [...document'
        f".querySelectorAll('.course-figure[data-figure=\"{name}\"]')]"
        '.find((figure) => figure.querySelector(".still"));'
    )


class Interactive:
    """A figure: `name` is its script in scripts/, `data` its numbers, `still` an SVG picture.

    `title` says in a sentence what is to be seen, for readers who cannot see it.
    """

    def __init__(self, name: str, data: dict, still: str, title: str):
        self.name, self.data, self.still, self.title = name, data, still, title

    def html(self) -> str:
        """One <div> with its style, picture and script; the script replaces the picture."""
        picture = base64.b64encode(self.still.encode("utf-8")).decode("ascii")
        style, common, own = (
            (SCRIPTS / file).read_text(encoding="utf-8").strip()
            for file in ("figures.css", "common.js", f"{self.name}.js")
        )
        return (
            f'<div class="course-figure" data-figure="{self.name}" role="group" '
            f'aria-label="{escape(self.title)}">\n<style>\n{style}\n</style>\n'
            f'<img class="still" alt="{escape(self.title)}" '
            f'src="data:image/svg+xml;base64,{picture}">\n'
            f"<noscript><p>{WITHOUT_SCRIPTS}</p></noscript>\n"
            f"<script>\n(() => {{\n{find_root(self.name)}\n"
            f"const data = {script_json(self.data)};\n{common}\n{own}\n}})();\n</script>\n</div>"
        )

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        """What Jupyter saves: the page's HTML, the picture, and the title as plain text."""
        return {
            "text/html": self.html(),
            "image/svg+xml": self.still,
            "text/plain": f"<{self.name}: {self.title}>",
        }
