"""A diff between a definition in one chapter and its replacement in a later one.

A chapter passes its own number: `difference("CausalSelfAttention", chapter=3)`.
"""

import ast
import difflib
import html
import json
from pathlib import Path

from nanogpt_lib.support.places import ROOT

COLOURS = {"+": "rgba(46,160,67,.25)", "-": "rgba(248,81,73,.25)"}  # for light and dark pages
LINE = '<span style="display: inline-block; min-width: 100%; background: {}">{}</span>'


class Difference(str):
    """A diff as text; a notebook shows added lines on green and removed ones on red."""

    __repr__ = str.__str__

    def _repr_html_(self) -> str:
        """The HTML that Jupyter displays."""
        lines = self.splitlines()
        lines = [LINE.format(COLOURS.get(s[:1], "none"), html.escape(s) or " ") for s in lines]
        return '<pre style="line-height: 1.3">' + "\n".join(lines) + "</pre>"


def definitions(name: str, chapter: int, notebooks: Path) -> list[tuple[int, str]]:
    """All exported definitions of a name up to a chapter: (chapter, source), oldest first."""
    found = []
    for path in sorted(notebooks.glob("[0-9][0-9]_*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source, number = "".join(cell["source"]), int(path.name[:2])
            if number > chapter or not source.startswith("#| export"):
                continue
            for node in ast.parse(source).body:
                targets = [ast.unparse(target) for target in getattr(node, "targets", [])]
                if name in [getattr(node, "name", None), *targets]:
                    decorators = [d.lineno for d in getattr(node, "decorator_list", [])]
                    start = min([node.lineno, *decorators])
                    text = "\n".join(source.split("\n")[start - 1 : node.end_lineno])
                    found.append((number, text))
    return found


def difference(name: str, chapter: int, context: int = 1, notebooks: Path | None = None):
    """What a chapter changed in the definition of `name`, with `context` lines around each change.

    Reads the repository's saved notebooks. Raises LookupError if the chapter replaced nothing.
    """
    found = definitions(name, chapter, notebooks or ROOT / "notebooks")
    if len(found) < 2 or found[-1][0] != chapter:
        raise LookupError(f"chapter {chapter} replaces no definition of {name}")
    before, after = (text.split("\n") for _, text in found[-2:])
    lines = list(difflib.unified_diff(before, after, lineterm="", n=context))[3:]
    return Difference("\n".join("  …" if line.startswith("@@") else line for line in lines))
