"""Reading and checking HellaSwag's JSON lines."""

import json
from collections.abc import Callable
from pathlib import Path

from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.places import find_data


def read_question(line: str) -> dict:
    """Parse one line of HellaSwag's JSON: `ctx`, `endings`, `label` (0 to 3) and `source_id`.

    The published label is a number; some copies of the set have a string ("2"). Raises ValueError
    that says what is wrong.
    """
    raw = json.loads(line)
    if not isinstance(raw, dict):
        raise ValueError("not a JSON object")
    context, endings, label = (raw.get(name) for name in ("ctx", "endings", "label"))
    if not isinstance(context, str) or not context:
        raise ValueError("ctx is not a non-empty string")
    texts = isinstance(endings, list) and all(isinstance(ending, str) for ending in endings)
    if not texts or len(endings) != 4:
        raise ValueError("endings is not a list of four strings")
    if isinstance(label, str) and label in ("0", "1", "2", "3"):
        label = int(label)
    if type(label) is not int or not 0 <= label < 4:  # isinstance(True, int) holds
        raise ValueError(f"label is {label!r}, not 0, 1, 2 or 3")
    source = str(raw.get("source_id", ""))
    return {"ctx": context, "endings": endings, "label": label, "source_id": source}


def read_lines(path: str | Path, parse: Callable[[str], object], limit: int | None = None) -> list:
    """Apply `parse` to the first `limit` lines that are not blank.

    A relative path is looked up in the working directory, then in the repository. Raises UserError
    for a missing file, an empty one, and a bad line (with its number).
    """
    path, items = find_data(path), []
    if not path.is_file():
        raise UserError(f"{path}: no such file; make it with python data/hellaswag.py")
    with open(path, encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if limit is not None and len(items) >= limit:
                break
            if not line.strip():
                continue
            try:
                items.append(parse(line))
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path} line {number}: not a HellaSwag item ({error})") from error
    if not items:
        raise UserError(f"{path}: has no items")
    return items
