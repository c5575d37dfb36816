"""Load a chapter's checks into its solutions notebook, so that no check is written twice.

    globals().update(load_checks("02_module"))

A check is a function check_1, check_2, … in a chapter's cell tagged `check`. It returns True, or
prints a hint and returns False. Such a cell must import everything it needs.
"""

import json
from pathlib import Path

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def load_checks(chapter: str) -> dict:
    """Run the cells of a chapter that are tagged `check`; return the functions they define."""
    path = NOTEBOOKS / f"{chapter}.ipynb"
    namespace: dict = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if "check" in cell["metadata"].get("tags", []):
            exec(compile("".join(cell["source"]), path.name, "exec"), namespace)
    return {name: f for name, f in namespace.items() if name.startswith("check_")}
