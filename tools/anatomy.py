"""What a chapter consists of, in numbers, and the terms it uses before they are explained.

For `tools/nb.py check`. What the numbers should be, for a newcomer to finish a chapter with
pleasure: 40 to 90 cells, a median of at most 8 lines in a code cell, at most a quarter of the code
exported (half in chapter 02), four fifths of the code cells with an output, 8 to 15 figures, and a
quarter of the code cells with an assertion that can fail.
"""

import re
from pathlib import Path
from statistics import median

COLUMNS = "chapter cells words lines exported output figures verify links forward".split()


def lines_of(source: str) -> int:
    """Lines of a cell that are neither empty nor an export mark."""
    return sum(1 for line in source.splitlines() if line.strip() and not line.startswith("#|"))


def has_figure(cell) -> bool:
    """Whether an output of the cell is a picture or a page of its own."""
    kinds = {kind for output in cell.get("outputs", []) for kind in output.get("data", {})}
    return bool(kinds & {"image/png", "image/svg+xml", "text/html"})


def measure(nb) -> dict[str, float]:
    """The numbers of a notebook (shares between 0 and 1), by the names in COLUMNS."""
    prose = [c.source for c in nb.cells if c.cell_type == "markdown"]
    code = [c for c in nb.cells if c.cell_type == "code" and c.source.strip()]
    sizes = [lines_of(c.source) for c in code]
    shown = [c for c in code if not c.metadata.get("jupyter", {}).get("source_hidden")]
    loud = [c for c in shown if c.get("outputs")]
    exported = sum(lines_of(c.source) for c in code if c.source.startswith("#| export"))
    return {
        "cells": len(nb.cells),
        "words": sum(len(re.findall(r"[\w'-]+", text)) for text in prose),
        "lines": median([lines_of(c.source) for c in shown] or [0]),
        "exported": exported / max(1, sum(sizes)),
        "output": len(loud) / max(1, len(shown)),
        "figures": sum(map(has_figure, code)),
        "verify": sum("assert " in c.source for c in code) / max(1, len(code)),
        "links": sum(len(re.findall(r"\]\([^)]+\)", text)) for text in prose),
    }


def read_glossary(path: Path) -> dict[str, int]:
    """Term → number of the chapter that introduces it, from lines `- **term, other** (NN): …`."""
    found = {}
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    for terms, chapter in re.findall(r"^- \*\*(.+?)\*\* \((\d\d)\):", text, flags=re.MULTILINE):
        found |= {term.strip(): int(chapter) for term in terms.split(",")}
    return found


def sentences(nb) -> list[tuple[int, str]]:
    """The sentences of a notebook's prose with their cell's number; no code, formulas or links."""
    found = []
    for number, cell in enumerate(nb.cells):
        if cell.cell_type == "markdown":
            text = re.sub(r"```.*?```|`[^`]*`|\$[^$]*\$|\]\([^)]*\)", " ", cell.source, flags=re.S)
            found += [(number, part) for part in re.split(r"(?<=[.!?:])\s|\n", text)]
    return found


def forward_uses(nb, chapter: int, glossary: dict[str, int]) -> list[str]:
    """Terms of later chapters in this one's prose, `[cell] term (NN)`, each once.

    A sentence that itself names a chapter points forward openly and is not counted; neither are
    the first two cells (what the chapter is after) and the last one (summary).
    """
    found: dict[str, str] = {}
    last = len(nb.cells) - 1
    for number, sentence in sentences(nb):
        if number < 2 or number == last or re.search(r"\bchapters? \d\d", sentence):
            continue
        for term, place in glossary.items():
            flags = re.IGNORECASE if term.islower() else 0
            pattern = rf"(?<![\w-]){re.escape(term)}s?(?![\w-])"
            if place > chapter and term not in found and re.search(pattern, sentence, flags):
                found[term] = f"[{number}] {term} ({place:02d})"
    return list(found.values())


def table(rows: dict[str, dict]) -> str:
    """The measurements of several chapters, one line each."""
    lines = ["".join(f"{name:>9}" for name in COLUMNS)]
    for name, row in rows.items():
        lines.append(f"{name[:8]:>9}" + "".join(f"{shown(row[c]):>9}" for c in COLUMNS[1:]))
    return "\n".join(lines)


def shown(value: float) -> str:
    """A number for the table: a share as a percentage."""
    return f"{value:.0%}" if isinstance(value, float) and value <= 1 else f"{value:,.0f}"
