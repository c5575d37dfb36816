"""Export, notebooks and imports: what keeps the course and the library one."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import export  # noqa: E402
import nb  # noqa: E402

MODULES = sorted(p.stem for p in (ROOT / "nanogpt_lib").glob("*.py") if p.stem != "__init__")
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NOTEBOOKS = CHAPTERS + sorted((ROOT / "notebooks/solutions").glob("*.ipynb"))


def notebook(folder: Path, name: str, *cells: str) -> None:
    """Write a notebook; a cell that begins with `md:` is markdown."""
    raw = [
        {"cell_type": "markdown", "source": cell[3:]}
        if cell.startswith("md:")
        else {"cell_type": "code", "source": cell}
        for cell in cells
    ]
    (folder / "notebooks").mkdir(exist_ok=True)
    (folder / "nanogpt_lib").mkdir(exist_ok=True)
    (folder / "notebooks" / name).write_text(json.dumps({"cells": raw}), encoding="utf-8")


HEAD = ("md:# Title\n\n> What it is.\n>\n> Shapes: B.", "#| default_exp toy")


def test_the_library_is_what_the_notebooks_export(capsys):
    assert export.main(["--check"]) == 0, capsys.readouterr()


def test_exported_module_reads_like_a_hand_written_one(tmp_path):
    notebook(
        tmp_path,
        "01_a.ipynb",
        *HEAD,
        "#| export\nimport torch\nfrom math import pi\nimport os",
        "print(1)",
        "md:> **Differs from the lecture:** not a docstring",
        "#| export\nfrom math import e\n\n\ndef f(x):\n    return x * pi * e + len(os.name)",
    )
    assert export.main(["--root", str(tmp_path)]) == 0
    assert (tmp_path / "nanogpt_lib/toy.py").read_text(encoding="utf-8") == (
        '"""What it is.\n\n'
        "Exported from notebooks/01_a.ipynb; edit the notebook, not this file.\n\n"
        'Shapes: B.\n"""\n\n'
        "import os\nfrom math import e, pi\n\nimport torch\n\n\n"
        "def f(x):\n    return x * pi * e + len(os.name)\n"
    )
    assert export.main(["--root", str(tmp_path), "--check"]) == 0


FAULTS = {
    "exported by toy and by other": [
        *HEAD, "#| export\ndef f(): pass",
        "md:> Other.", "#| default_exp other", "#| export\ndef f(): pass",
    ],
    "exported twice: f": [*HEAD, "#| export\ndef f(): pass", "#| export\ndef f(): return 1"],
    "undefined g": [*HEAD, "#| export\ndef f():\n    return g()"],
    "a magic": [*HEAD, "#| export\n%time f()"],
    "before `#| default_exp`": ["#| export\ndef f(): pass"],
    "no block quote": ["md:# Title", "#| default_exp toy", "#| export\ndef f(): pass"],
    "absolute": [*HEAD, "#| export\nfrom .x import y"],
    "comment": [*HEAD, "#| export\nimport os  # why\n\nos"],
}  # fmt: skip


@pytest.mark.parametrize("message", FAULTS)
def test_the_exporter_refuses(message, tmp_path, capsys):
    notebook(tmp_path, "01_a.ipynb", *FAULTS[message])
    assert export.main(["--root", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "nanogpt_lib").iterdir())


def test_a_stale_or_orphaned_module_fails_the_check(tmp_path, capsys):
    notebook(tmp_path, "01_a.ipynb", *HEAD, "#| export\nX = 1")
    assert export.main(["--root", str(tmp_path), "--check"]) == 1  # not written yet
    assert export.main(["--root", str(tmp_path)]) == 0
    (tmp_path / "notebooks/01_a.ipynb").unlink()
    assert export.main(["--root", str(tmp_path), "--check"]) == 1
    assert "toy.py: no notebook exports it" in capsys.readouterr().err


def test_there_are_ten_chapters_each_with_solutions():
    assert [p.name[:2] for p in CHAPTERS] == [f"{n:02d}" for n in range(1, 11)]
    assert [p.name for p in NOTEBOOKS[10:]] == [p.name for p in CHAPTERS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_notebooks_are_tidy_and_executed(path):
    assert nb.faults(path) == []


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_a_chapter_verifies_and_stays_readable(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    lines = [c.count("\n") + 1 for c in code if not c.startswith(("#| export", "def check_"))]
    words = sum(len("".join(c["source"]).split()) for c in cells if c["cell_type"] == "markdown")
    asserting = [c for c in code if "assert" in c]
    assert len(asserting) >= len(code) / 4 and words >= 800
    assert max(lines) <= 32
    assert sum(any("image/" in str(o) for o in c.get("outputs", [])) for c in cells) >= 2


def test_no_exported_symbol_is_defined_again_in_a_later_chapter():
    owner = {}
    for path in CHAPTERS:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] != "code":
                continue
            source = re.sub(r"(?m)^[%!].*$", "", "".join(cell["source"]))  # magics are not Python
            for node in ast.parse(source).body:
                if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                    continue
                first = owner.get(node.name)
                assert first is None or source.startswith("#| export") is False and first == path, (
                    f"{path.name} defines {node.name} again"
                )
                if source.startswith("#| export"):
                    owner[node.name] = path


def test_module_names_do_not_shadow_the_standard_library():
    recipes = [p.stem for p in (ROOT / "data").glob("*.py")]
    assert not set(MODULES + recipes) & sys.stdlib_module_names


def test_every_module_imports_alone_without_side_effects():
    """Each as the first of ours in the interpreter: nothing printed, no heavy package, no group."""
    script = """
import importlib, sys, threading, torch
for name in sys.argv[1:]:
    for loaded in [m for m in sys.modules if m.startswith("nanogpt_lib")]:
        del sys.modules[loaded]
    importlib.import_module("nanogpt_lib." + name)
    heavy = {"transformers", "matplotlib", "pyarrow", "IPython"} & set(sys.modules)
    assert not heavy, f"{name} imports {heavy}"
    assert not torch.distributed.is_initialized() and torch.initial_seed() == torch.initial_seed()
    assert torch.get_float32_matmul_precision() == "highest", f"{name} sets TF32"
"""
    command = [sys.executable, "-c", script, *MODULES]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "tests")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_modules_import_only_from_lower_floors():
    floors = [
        {"config"},
        {"pretrained", "tokenizer", "optimizer", "device", "distributed", "shards", "guard"},
        {"model", "loader", "prepare"},
        {"checkpoint", "logbook", "evaluation", "hellaswag", "sampling", "ladder", "others"},
        {"samplers", "run"},
        {"train", "sample", "bench"},
    ]
    floor = {name: number for number, names in enumerate(floors) for name in names}
    assert set(floor) == set(MODULES)
    for name in MODULES:
        tree = ast.parse((ROOT / f"nanogpt_lib/{name}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nanogpt_lib."):
                used = node.module.split(".")[1]
                # hellaswag runs as a program too, and then loads a checkpoint
                allowed = floor[used] < floor[name] or (name, used) == ("hellaswag", "checkpoint")
                assert allowed, f"{name} imports {used}"
