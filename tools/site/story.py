"""What each chapter exports, and how the library's code grows from chapter to chapter."""

import difflib
import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from export import read_notebook  # noqa: E402
from module_text import ExportError, defined_names, split_imports  # noqa: E402


@dataclass
class Exported:
    """An exported cell: its module, the names it defines, and the code that it replaces."""

    module: str
    names: set[str]
    body: str
    chapter: str
    before: "Exported | None" = None

    def difference(self) -> str:
        """A unified difference to the replaced code, without its header; empty for a new cell."""
        if not self.before:
            return ""
        old, new = self.before.body.split("\n"), self.body.split("\n")
        lines = list(difflib.unified_diff(old, new, "", "", "", "", 3))[2:]
        return "\n".join("⋯" if line.startswith("@@") else line for line in lines)


def exported_cells(chapters: list[Path]) -> dict[tuple[str, int], Exported]:
    """{(file name, cell number): what is exported there}, replaced cells linked to earlier ones."""
    found, latest = {}, {}
    for path in chapters:
        for cell in read_notebook(path)[1]:
            name, number = re.fullmatch(r"(\S+) cell (\d+)", cell.where).groups()
            _, body = split_imports(cell.source, cell.where)
            names = defined_names(body, cell.where)
            here = Exported(cell.module, names, body, path.stem)
            if cell.replaces:
                here.before = next(
                    (latest[cell.module, n] for n in names if (cell.module, n) in latest), None
                )
            latest.update(((cell.module, n), here) for n in names)
            found[name, int(number)] = here
    return found


__all__ = ["ExportError", "Exported", "exported_cells"]
