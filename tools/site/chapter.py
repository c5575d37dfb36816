"""A notebook of the course as a page of the web book; the notebook itself stays as it is."""

import copy
import json
import re
from dataclasses import dataclass
from pathlib import Path

import cells as parts
from exercises import exercise_cards
from library import library_imports
from prose import link_times, relink, space_formulas, without_navigation
from story import Exported


@dataclass
class Book:
    """What the pages need to know of each other."""

    root: Path
    pages: set[str]  # repository paths that have a page: "notebooks/03_sampling.ipynb"
    library: set[str]  # dotted module names
    exported: dict[tuple[str, int], Exported]
    repository: str = ""  # address for files that have no page, or nothing

    def resolve(self, page: str, target: str) -> str | None:
        """The place of a relative link in the book; None where there is nothing to link to."""
        path, _, anchor = target.partition("#")
        full = (self.root / page).parent.joinpath(path).resolve()
        if not full.is_relative_to(self.root):
            return None
        name, up = full.relative_to(self.root).as_posix(), "../" * page.count("/")
        if name in self.pages:
            return up + name + (f"#{anchor}" if anchor else "")
        if name in ("README.md", "."):
            return f"{up}index.md"
        module = name.removesuffix(".py").removeprefix("nanogpt_lib/").replace("/", ".")
        if name.startswith("nanogpt_lib/") and module in self.library:
            return f"{up}library/{module}.md"
        if name.startswith("notebooks/solutions/"):
            return "#exercises"
        return f"{self.repository}/{name}" if self.repository else None


@dataclass
class Chapter:
    """A notebook on its way to a page."""

    path: str  # "notebooks/03_sampling.ipynb"
    cells: list[dict]
    metadata: dict

    @classmethod
    def read(cls, root: Path, path: str) -> "Chapter":
        """Read a notebook below root."""
        try:
            notebook = json.loads((root / path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is no notebook: {error}") from None
        return cls(path, notebook["cells"], notebook["metadata"])

    @property
    def head(self) -> str:
        """The first Markdown cell: title, quote, times."""
        first = next((c for c in self.cells if c["cell_type"] == "markdown"), {"source": ""})
        return "".join(first["source"])

    @property
    def title(self) -> str:
        """The title without its mark."""
        found = re.search(r"^# (.+)$", self.head, re.M)
        return found[1].strip() if found else Path(self.path).stem

    @property
    def summary(self) -> str:
        """The first paragraph of the quote under the title."""
        quote = re.search(r"(?:^>.*\n?)+", self.head, re.M)
        text = re.sub(r"^> ?", "", quote[0], flags=re.M) if quote else ""
        return " ".join(text.split("\n\n")[0].split())

    @property
    def lecture(self) -> str:
        """The lecture's time of this chapter, "0:33:31", or nothing."""
        found = re.search(r"\*\*Lecture\*\* (\d:\d\d:\d\d)", self.head)
        return found[1] if found else ""

    def bound(self, book: Book) -> dict[str, str]:
        """{name: "module.name"} of the library's symbols that this notebook knows."""
        found = {}
        for number, cell in enumerate(self.cells):
            if cell["cell_type"] == "code":
                found |= library_imports(parts.statements("".join(cell["source"])))
                if here := book.exported.get((Path(self.path).name, number)):
                    found |= {name: f"{here.module}.{name}" for name in here.names}
        return found


def prose(text: str, page: str, book: Book) -> str:
    """A Markdown text of a page, rewritten for the book."""
    text = relink(without_navigation(text), lambda target: book.resolve(page, target))
    return space_formulas(link_times(text) if page.endswith(".ipynb") else text)


def file_note(here: Exported, replaced: bool) -> str:
    """The line above an exported cell: which file of the library it becomes."""
    link = f"[nanogpt_lib/{here.module}.py](../library/{here.module}.md)"
    text = f"Goes into {link}"
    if replaced and here.before:
        names = ", ".join(f"`{name}`" for name in sorted(here.before.names))
        text += f"; replaces {names} of [](./{here.before.chapter}.ipynb)"
    return f":::{{div}} exported\n{text}\n:::"


def code_cell(cell: dict, number: int, chapter: Chapter, book: Book, heading: str) -> list[dict]:
    """The cells that a code cell of a notebook becomes on its page."""
    source = "".join(cell["source"])
    name = Path(chapter.path).name
    if re.match(r"#\|\s*default_exp", source):
        return []
    cell = {k: copy.deepcopy(v) for k, v in cell.items() if k != "id"}
    here = book.exported.get((name, number))
    if here or source.startswith("#|"):
        source = parts.EXPORT_LINE.sub("", source)
    cell["source"] = source
    cell["outputs"] = parts.merge_streams(cell.get("outputs", []))
    if label := parts.fold_label(cell, source):
        parts.fold(cell, label)
    if parts.has_picture(cell):
        alt = parts.alternative_text(cell, source, heading)
        cell["metadata"].setdefault("mystnb", {})["image"] = {"alt": alt}
    if not here or not here.names:
        return [cell]
    note = [parts.markdown(file_note(here, bool(here.before))), cell]
    if here.before and not shown_already(chapter, here):
        change = parts.fence(here.difference(), "diff")
        title = f"What changed since chapter {here.before.chapter[:2]}"
        note.append(parts.markdown(f"::::{{dropdown}} {title}\n\n{change}\n::::"))
    return note


def shown_already(chapter: Chapter, here: Exported) -> bool:
    """Whether the notebook prints the difference of this replacement itself."""
    sources = "\n".join("".join(c["source"]) for c in chapter.cells if c["cell_type"] == "code")
    return any(f'difference("{name}"' in sources for name in here.before.names)


def heading_of(text: str, before: str) -> str:
    """The last heading of a Markdown text, in plain words, or the one before it."""
    found = re.findall(r"^#{1,6} (.+?)(?: \(\d:\d\d:\d\d\))?$", text, re.M)
    return re.sub(r"[`*$]", "", found[-1]) if found else before


def page_of(chapter: Chapter, solutions: list[dict], book: Book) -> dict:
    """The notebook as the book shows it, ready to be written as .ipynb."""
    out, asked, heading, in_exercises = [], [], "", False
    for number, cell in enumerate(chapter.cells):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heading = heading_of(source, heading)
            starts = re.search(r"^## Exercises\b", source, re.M)
            ends = in_exercises and re.search(r"^## ", source, re.M) and not starts
            in_exercises = bool(starts) or in_exercises and not ends
            text = prose(source, chapter.path, book)
            if ends:
                out += flush(asked, solutions, chapter, book)
            if in_exercises:
                asked.append(parts.markdown(text))
            else:
                out.append(parts.markdown(text))
        elif cell["cell_type"] == "code":
            made = [cell] if in_exercises else code_cell(cell, number, chapter, book, heading)
            (asked if in_exercises else out).extend(made)
    out += flush(asked, solutions, chapter, book)
    metadata = {"language_info": {"name": "python"}, **chapter.metadata}
    cells = parts.join_setup(out)
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 4}


def flush(asked: list[dict], solutions: list[dict], chapter: Chapter, book: Book) -> list[dict]:
    """The collected exercises as Markdown cells; nothing where there were none."""
    page = Path(chapter.path).stem.replace("_", "-")
    made = exercise_cards(asked, solutions, page) if asked else []
    asked.clear()
    return [parts.markdown(text) for text in made]


def solution_cells(root: Path, chapter: Chapter, book: Book) -> list[dict]:
    """The cells of the chapter's worked solutions, their prose rewritten as from the chapter."""
    path = Path(chapter.path).parent / "solutions" / Path(chapter.path).name
    if not (root / path).exists():
        return []
    solutions = Chapter.read(root, path.as_posix())
    for cell in solutions.cells:
        if cell["cell_type"] == "markdown":
            text = "".join(cell["source"])
            cell["source"] = prose(text.replace("](../", "]("), chapter.path, book)
    return solutions.cells
