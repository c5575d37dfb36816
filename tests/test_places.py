"""Notebooks run from any working directory, and a child process that fails says why."""

import ast
import json
import re

import nbformat
import pytest
from nbclient import NotebookClient

from conftest import ROOT
from nanogpt_lib.support import places

NOTEBOOKS = sorted((ROOT / "notebooks").glob("**/[0-9][0-9]_*.ipynb"))


def test_a_child_that_fails_shows_its_own_words():
    assert places.run_python("-c", "print('fine')") == "fine\n"
    with pytest.raises(RuntimeError, match="status 3:\nhalf\nthe reason$"):
        places.run_python(
            "-c", "import sys; print('half'); print('the reason', file=sys.stderr); sys.exit(3)"
        )


def test_a_dataset_is_made_once_and_a_recipe_that_fails_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "DATA", tmp_path / "data")
    (tmp_path / "data").mkdir()
    recipe = tmp_path / "data/toy.py"
    recipe.write_text(
        "import pathlib, sys\n"
        "assert sys.argv[1] == '--out'\n"
        "folder = pathlib.Path(sys.argv[2])\n"
        "folder.mkdir()\n"
        "(folder / 'meta.json').write_text('{}')\n",
        encoding="utf-8",
    )
    assert places.dataset("toy") == tmp_path / "data/toy"
    recipe.write_text("raise SystemExit('toy: no text here')", encoding="utf-8")
    assert places.dataset("toy") == tmp_path / "data/toy"  # not made again
    (tmp_path / "data/toy/meta.json").unlink()
    with pytest.raises(RuntimeError, match="toy: no text here"):
        places.dataset("toy")


def relative_paths(source: str) -> list[str]:
    """Strings in a cell that name a file of the repository relative to the working directory.

    `ROOT / "data/pydocs"` is fine: the right operand of a division is skipped.
    """
    tree = ast.parse(re.sub(r"(?m)^[%!].*$", "", source))
    anchored = {id(n.right) for n in ast.walk(tree) if isinstance(n, ast.BinOp)}
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        text = node.value
        here = re.fullmatch(r"[\w./-]*[\w-]", text) and (ROOT / "notebooks" / text).exists()
        if "../" in text or here and id(node) not in anchored:
            found.append(text)
    return found


def test_what_counts_as_a_path_that_stands_on_the_working_directory():
    assert relative_paths('open("../data/x")') == ["../data/x"]
    assert relative_paths('Path("recorded") / "log.jsonl"') == ["recorded"]
    assert relative_paths('ROOT / "notebooks/recorded"; print("recorded as"); x = "…"') == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_no_cell_assumes_a_working_directory(path):
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            assert relative_paths(source) == [], f"cell {number}"
            hides = "check=True" in source and "capture_output=True" in source
            assert not hides, f"cell {number}: a child that fails would hide its reason"


@pytest.mark.parametrize("chapter, elsewhere", [("01_checkpoint", True), ("04_training", False)])
def test_a_chapter_runs_from_any_folder(chapter, elsewhere, tmp_path):
    """From the repository's root, as an editor that opens the repository, and from far away."""
    folder = tmp_path if elsewhere else ROOT
    notebook = nbformat.read(ROOT / f"notebooks/{chapter}.ipynb", as_version=4)
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    assert all(c.execution_count for c in notebook.cells if c.cell_type == "code" and c.source)
    assert not list(tmp_path.iterdir())  # and leaves nothing behind where it was started
