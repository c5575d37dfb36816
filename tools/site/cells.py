"""A notebook's cells as the web book shows them: folded, captioned, with texts for its pictures."""

import ast
import re

EXPORT_LINE = re.compile(r"\A#\|[^\n]*\n?")
DRAWING = re.compile(r"\bplt\.|\bax(es)?\b[.\[]|\bfig\b|\.savefig\(|\bfigures\.")
SETUP = "Imports and settings"
TITLES = re.compile(
    r"(?:set_)?(?P<what>title|suptitle|xlabel|ylabel)\s*[=(]\s*f?(?P<q>['\"])(?P<text>.+?)(?P=q)"
)


def markdown(source: str) -> dict:
    """A Markdown cell."""
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def statements(source: str) -> list[ast.stmt]:
    """The top-level statements of a cell, without magics; none where it is not Python."""
    try:
        return ast.parse(re.sub(r"^[%!].*$", "", source, flags=re.M)).body
    except SyntaxError:
        return []


def is_setup(source: str) -> bool:
    """Whether a cell only imports and sets options: nothing to read before the first idea."""
    body = statements(source)
    imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    defines = any(isinstance(n, ast.FunctionDef | ast.ClassDef | ast.For | ast.With) for n in body)
    return bool(imports) and not defines and 2 * len(imports) >= len(body)


def has_picture(cell: dict) -> bool:
    """Whether one of the cell's outputs is a picture."""
    data = [kind for o in cell.get("outputs", []) for kind in o.get("data", {})]
    return any(kind.startswith("image/") for kind in data)


def fold_label(cell: dict, source: str) -> str | None:
    """What a folded cell says on its handle, or None for a cell that stays open."""
    if has_picture(cell) and DRAWING.search(source) and source.count("\n") > 2:
        return "The code of this figure"
    body = statements(source)
    functions = [node for node in body if isinstance(node, ast.FunctionDef)]
    if functions and len(functions) == len(body) and re.search(r"\b(ax|axes|fig)\.", source):
        return "A function that draws"
    if is_setup(source) and not cell.get("outputs"):
        return SETUP
    tags = cell["metadata"].get("tags", [])
    hidden = cell["metadata"].get("jupyter", {}).get("source_hidden")
    if hidden or "hide-input" in tags:
        return "The code of this cell"
    return None


def alternative_text(cell: dict, source: str, heading: str) -> str:
    """What a figure shows: the notebook's own text, or the strings its code draws."""
    if given := cell["metadata"].get("alt") or cell["metadata"].get("mystnb", {}).get("alt"):
        return given
    seen: dict[str, list[str]] = {}
    for match in TITLES.finditer(source):
        text = re.sub(r"\{[^{}]*\}|\\n|\$", " ", match["text"]).strip()
        if text and text not in seen.setdefault(match["what"], []):
            seen[match["what"]].append(text)
    titles = seen.get("suptitle", []) + seen.get("title", [])
    parts = [f"Figure in the section “{heading}”", *titles[:4]]
    parts += [f"horizontal axis: {x}" for x in seen.get("xlabel", [])[:2]]
    parts += [f"vertical axis: {y}" for y in seen.get("ylabel", [])[:2]]
    return "; ".join(" ".join(part.split()) for part in parts) + "."


def fold(cell: dict, label: str) -> None:
    """Mark a cell so that its code is behind a handle with this label."""
    meta = cell["metadata"]
    meta["tags"] = sorted({*meta.get("tags", []), "hide-input"})
    prompts = {"code_prompt_show": f"{label}: show", "code_prompt_hide": f"{label}: hide"}
    meta["mystnb"] = {**meta.get("mystnb", {}), **prompts}


def is_folded_setup(cell: dict) -> bool:
    """Whether a cell is already folded as one that only imports."""
    prompt = cell["metadata"].get("mystnb", {}).get("code_prompt_show", "")
    return cell["cell_type"] == "code" and prompt.startswith(SETUP)


def join_setup(cells: list[dict]) -> list[dict]:
    """Put folded imports that follow each other behind one handle."""
    out: list[dict] = []
    for cell in cells:
        if out and is_folded_setup(cell) and is_folded_setup(out[-1]):
            out[-1]["source"] += "\n\n" + cell["source"]
        else:
            out.append(cell)
    return out


def text_of(output: dict) -> str:
    """The text that an output shows, empty for a picture."""
    text = output.get("text") or output.get("data", {}).get("text/plain") or ""
    return "" if any(k.startswith("image/") for k in output.get("data", {})) else "".join(text)


def fence(text: str, language: str = "") -> str:
    """A fenced block whose fence no line of the text can close."""
    ticks = "`" * max(3, 1 + max((len(t) for t in re.findall(r"`+", text)), default=0))
    return f"{ticks}{language}\n{text.rstrip()}\n{ticks}"


def merge_streams(outputs: list[dict]) -> list[dict]:
    """Join what a cell printed piece by piece, so that it is one block on the page."""
    merged: list[dict] = []
    for output in outputs:
        last = merged[-1] if merged else {}
        if output["output_type"] == "stream" and last.get("name") == output["name"]:
            last["text"] = "".join(last["text"]) + "".join(output["text"])
        else:
            merged.append(dict(output))
    return merged
