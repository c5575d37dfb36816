"""Export, notebooks and imports: what keeps the course and the library consistent."""

import ast
import json
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from conftest import ROOT
from nanogpt_lib.support.growth import difference

sys.path.insert(0, str(ROOT / "tools"))
import export  # noqa: E402
import nb  # noqa: E402

FILES = {
    ".".join(path.relative_to(ROOT / "nanogpt_lib").with_suffix("").parts): path
    for path in sorted((ROOT / "nanogpt_lib").rglob("*.py"))
    if path.stem != "__init__"
}
MODULES = list(FILES)
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
        "import os\nfrom math import e, pi\n\n\n"
        "def f(x):\n    return x * pi * e + len(os.name)\n"
    )
    assert export.main(["--root", str(tmp_path), "--check"]) == 0


def test_a_module_without_imports_is_formatted_as_well(tmp_path):
    notebook(tmp_path, "01_a.ipynb", *HEAD, "#| export\ndef f(x):\n    return x")
    assert export.main(["--root", str(tmp_path)]) == 0
    text = (tmp_path / "nanogpt_lib/toy.py").read_text(encoding="utf-8")
    assert text.endswith('Shapes: B.\n"""\n\n\ndef f(x):\n    return x\n')


def export_cells(folder: Path, *chapters: tuple[str, ...], upto: int = 99) -> str:
    """Export chapters 01, 02, … of the given cells; return the module toy."""
    for number, cells in enumerate(chapters, start=1):
        notebook(folder, f"{number:02d}_a.ipynb", *cells)
    return export.build(folder, upto)[folder / "nanogpt_lib/toy.py"]


def test_a_later_chapter_replaces_a_definition_where_it_stands(tmp_path):
    chapters = [
        (*HEAD, "#| export\ndef f(x):\n    return x", "#| export\ndef last():\n    return f(1)"),
        ("#| export toy replaces\nSCALE = 2\n\n\ndef f(x, y=0):\n    return SCALE * x + y",),
        (
            "#| default_exp toy",
            "#| export replaces\nimport math\nSCALE = math.pi\n\n\ndef f(x, y=0, z=0):\n"
            "    return SCALE * x + y + z",
        ),
    ]
    first, second, third = (export_cells(tmp_path, *chapters, upto=n) for n in (1, 2, 3))
    assert "Exported from notebooks/01_a.ipynb; edit the notebook, not" in first
    assert "Exported from notebooks/01_a.ipynb and 02_a.ipynb; edit the notebooks, not" in second
    assert "notebooks/01_a.ipynb, 02_a.ipynb and 03_a.ipynb; edit the notebooks, not" in third
    assert third == export_cells(tmp_path, *chapters)
    assert third.startswith('"""What it is.') and "Shapes: B." in third
    for text, signature in ((first, "f(x)"), (second, "f(x, y=0)"), (third, "f(x, y=0, z=0)")):
        assert text.count("def f(") == 1 and f"def {signature}" in text
        assert text.index("def f(") < text.index("def last(")  # the place is kept
    assert "SCALE = 2" in second and "SCALE = 2" not in third
    assert "import math" in third and "import math" not in second


def test_the_line_that_names_many_notebooks_is_wrapped(tmp_path):
    chapters = [(*HEAD, "#| export\nA = 1")] + [("#| export toy replaces\nA = 2",)] * 8
    lines = export_cells(tmp_path, *chapters).splitlines()
    assert max(map(len, lines)) <= 100 and lines[2].startswith("Exported from notebooks/01_a.ipynb")
    assert " ".join(lines[2:4]).endswith("and 09_a.ipynb; edit the notebooks, not this file.")


def test_imports_stay_as_long_as_something_uses_them(tmp_path):
    imports = (
        "#| export\nimport functools\nimport os\nimport os.path\nimport xml.dom\nimport xml.sax\n"
        "import json\nimport math\nimport typing\nfrom pathlib import Path, PurePath\n"
        "from collections import Counter, OrderedDict, deque"
    )
    uses = (
        '#| export\n__all__ = ["deque", "f"]\n\n\n'
        '@functools.cache\ndef f(x: "Path | None", math=1) -> "list[Counter]":\n'
        '    json = typing.cast("OrderedDict", os.name)\n'
        "    return json, math, xml.sax.handler"
    )
    text = export_cells(tmp_path, (*HEAD, imports, uses))
    assert re.findall(r"^(?:import|from) .*", text, flags=re.MULTILINE) == [
        "import functools",
        "import os",
        "import typing",
        "import xml.sax",
        "from collections import Counter, OrderedDict, deque",
        "from pathlib import Path",
    ]  # not json and math: those are local names


def test_an_import_that_only_the_replaced_definition_used_vanishes(tmp_path):
    first = (*HEAD, "#| export\nimport math\n\n\ndef f():\n    return math.pi")
    later = ("#| export toy replaces\ndef f():\n    return 3",)
    assert "import math" in export_cells(tmp_path, first, later, upto=1)
    assert "import" not in export_cells(tmp_path, first, later)


F = "#| export\ndef f(): pass"
FAULTS = {
    "exported by toy and by other": [*HEAD, F, "md:> Other.", "#| default_exp other", F],
    "cell 3: exported twice: f": [*HEAD, F, "#| export\ndef f(): return 1"],
    "cell 2: exported twice: f": [*HEAD, F + "\n\n\ndef f(): return 1"],
    "cell 3: exported twice: A": [*HEAD, "#| export\nA = 1", "#| export\nA = 2"],
    "replaces no earlier cell of toy (defines g)": [*HEAD, F, "#| export replaces\ndef g(): pass"],
    "replaces no earlier cell of toy (defines nothing)": [*HEAD, F, "#| export replaces\nprint()"],
    "replaces several earlier cells of toy (defines f, g)": [
        *HEAD, F, "#| export\ndef g(): pass",
        "#| export replaces\ndef f(): return 1\n\n\ndef g(): return 1",
    ],
    "replaces a cell but drops g": [
        *HEAD, F + "\n\n\ndef g(): pass", "#| export toy replaces\ndef f(): return 1",
    ],
    "replaces no earlier cell of other": [
        *HEAD, F, "md:> Other.", "#| default_exp other", "#| export other replaces\ndef f(): pass",
    ],
    "undefined g": [*HEAD, "#| export\ndef f():\n    return g()"],
    "a magic": [*HEAD, "#| export\n%time f()"],
    "before `#| default_exp`": ["#| export\ndef f(): pass"],
    "no block quote": ["md:# Title", "#| default_exp toy", F],
    "absolute": [*HEAD, "#| export\nfrom .x import y"],
    "comment": [*HEAD, "#| export\nimport os  # why\n\nos"],
    "cannot read '#| export toy replace'": [*HEAD, "#| export toy replace\ndef f(): pass"],
    "cannot read '#| exports'": [*HEAD, "#| exports\ndef f(): pass"],
    "name is os.name and sys.name": [
        *HEAD, "#| export\nfrom os import name\nfrom sys import name\n\nX = name",
    ],
    "pi is its own definition and math.pi": [
        *HEAD, "#| export\nfrom math import pi\n\npi = pi + 1",
    ],
}  # fmt: skip


@pytest.mark.parametrize("message", FAULTS)
def test_the_exporter_refuses(message, tmp_path, capsys):
    notebook(tmp_path, "01_a.ipynb", *FAULTS[message])
    assert export.main(["--root", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "nanogpt_lib").iterdir())


def test_a_stage_is_never_written_over_another(tmp_path, capsys):
    assert export.main(["--upto", "1", "--out", str(tmp_path)]) == 0
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.py")}
    assert export.main(["--upto", "9", "--out", str(tmp_path)]) == 1
    assert "already exists; choose another --out" in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*.py")}
    for wrong in (["--upto", "1"], ["--out", "x"], ["--upto", "1", "--out", "x", "--check"]):
        with pytest.raises(SystemExit) as ended:
            export.main(wrong)
        assert ended.value.code == 2 and not Path("x").exists()


def test_a_stale_or_orphaned_module_fails_the_check(tmp_path, capsys):
    notebook(tmp_path, "01_a.ipynb", *HEAD, "#| export\nX = 1")
    assert export.main(["--root", str(tmp_path), "--check"]) == 1  # not written yet
    assert export.main(["--root", str(tmp_path)]) == 0
    (tmp_path / "notebooks/01_a.ipynb").unlink()
    assert export.main(["--root", str(tmp_path), "--check"]) == 1
    assert "toy.py: no notebook exports it" in capsys.readouterr().err


def tool(name: str, *args, cwd: Path) -> subprocess.CompletedProcess:
    """Run a program of tools/ from a working directory, as a user would."""
    command = [sys.executable, str(ROOT / "tools" / name), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


def test_save_keeps_outputs_of_unchanged_cells_and_check_waits_for_the_next_run(tmp_path):
    path, place = tmp_path / "toy.ipynb", tmp_path / "elsewhere"
    place.mkdir()
    cells = ["import itertools\n\ncount = itertools.count()", "next(count)", "next(count)", "1 + 1"]
    twin = "# %% [markdown]\n# # Toy\n\n" + "".join(f"# %%\n{cell}\n\n" for cell in cells)
    folded = twin.replace(
        "# %%\nimport", '# %% tags=["setup"] jupyter={"source_hidden": true}\nimport'
    )

    def save(text: str) -> list:
        path.with_suffix(".py").write_text(text, encoding="utf-8")
        assert (done := tool("nb.py", "save", path, cwd=place)).returncode == 0, done.stderr
        return json.loads(path.read_text(encoding="utf-8"))["cells"]

    def results(cells: list) -> list:
        outputs = [cell["outputs"] for cell in cells if cell["cell_type"] == "code"]
        return ["".join(o[0]["data"]["text/plain"]) if o else None for o in outputs]

    def check() -> str:
        done = tool("nb.py", "check", path, cwd=place)
        faults, head, numbers = done.stdout.partition("  chapter")
        assert done.returncode == bool(faults) and head and done.stderr == ""
        assert numbers.splitlines()[1].split()[:2] == ["toy", "5"]  # five cells
        return faults

    assert results(save(folded)) == [None] * 4 and "not executed" in check()
    done = tool("nb.py", "run", path, cwd=place)
    assert done.returncode == 0, done.stderr
    assert check() == ""
    # the twin is a round trip: fold, tags and outputs stay, and two equal cells keep their own
    assert tool("nb.py", "text", path, cwd=place).returncode == 0
    again = save(path.with_suffix(".py").read_text(encoding="utf-8"))
    assert results(again) == [None, "0", "1", "2"] and check() == ""
    assert again[1]["metadata"] == {"tags": ["setup"], "jupyter": {"source_hidden": True}}
    # an edited cell loses its output, a cell between equal ones does not mix them up
    assert results(save(folded.replace("1 + 1", "1 + 2"))) == [None, "0", "1", None]
    assert "not executed top to bottom since its last edit" in check()
    assert results(save(folded.replace("# %%\nnext(count)\n\n", "", 1))) == [None, "0", None]
    # a syntax error leaves the notebook as it was
    before = path.read_bytes()
    path.with_suffix(".py").write_text(folded.replace("1 + 1", "1 +"), encoding="utf-8")
    done = tool("nb.py", "save", path, cwd=place)
    assert done.returncode == 1 and "a syntax error in a cell?" in done.stderr
    assert path.read_bytes() == before


def test_the_tools_work_from_any_directory_and_name_what_they_do_not_find(tmp_path):
    done = tool("nb.py", "check", "02", ROOT / "notebooks/03_sampling.ipynb", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.startswith("  chapter")
    assert tool("export.py", "--check", cwd=tmp_path).returncode == 0
    for name in ("99", "s99", "nowhere/x.ipynb", str(tmp_path / "x.ipynb")):
        done = tool("nb.py", "check", name, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (1, f"nb: no notebook {name}\n")


def test_every_chapter_has_solutions():
    assert [p.name[:2] for p in CHAPTERS] == [f"{n:02d}" for n in range(1, 14)]
    assert [p.name for p in NOTEBOOKS[len(CHAPTERS) :]] == [p.name for p in CHAPTERS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_notebooks_are_tidy_and_executed(path):
    assert nb.faults(path) == []


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_a_chapter_verifies_and_stays_readable(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    taught = [c for c in code if not c.startswith("#| export")]
    # nobody reads the imports of a first cell
    lines = [len(re.findall(r"(?m)^(?!import |from |$)", c)) for c in taught]
    words = sum(len("".join(c["source"]).split()) for c in cells if c["cell_type"] == "markdown")
    asserting = [c for c in code if "assert" in c]
    assert len(asserting) >= len(code) / 4 and words >= 800
    assert max(lines) <= 30
    assert sum(any("image/" in str(o) for o in c.get("outputs", [])) for c in cells) >= 2


def test_no_exported_symbol_is_defined_again_without_saying_so():
    """A later cell redefines an exported name only with `#| export … replaces`; no shadowing."""
    owner = {}
    for path in CHAPTERS:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] != "code":
                continue
            source = re.sub(r"(?m)^[%!].*$", "", "".join(cell["source"]))  # magics are not Python
            exported = export.EXPORT.match(source)
            for node in ast.parse(source).body:
                if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                    continue
                first = owner.get(node.name)
                replaces = exported and exported[2] and first
                assert not first or replaces or first == path and not exported, (
                    f"{path.name} defines {node.name} again"
                )
                if exported:
                    owner[node.name] = path


def test_module_names_do_not_shadow_the_standard_library():
    recipes = [p.stem for p in (ROOT / "data").glob("*.py")]
    top = [name for name in MODULES if "." not in name]
    assert not set(top + recipes) & sys.stdlib_module_names


def test_every_module_imports_alone_without_side_effects():
    """Each imported first in the interpreter: prints nothing, imports no heavy package, joins no
    process group, uses no global random generator, changes no PyTorch setting."""
    script = """
import importlib, os, random, signal, sys, threading
import numpy as np, torch

def state():
    return [
        torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()),
        torch.get_float32_matmul_precision(), torch.get_num_threads(), torch.get_default_dtype(),
        torch.is_grad_enabled(), torch.distributed.is_initialized(),
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32,
        signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT),
        threading.active_count(), dict(os.environ), os.getcwd(), list(sys.path),
    ]

torch.manual_seed(1)
before = state()
for name in sys.argv[1:]:
    for loaded in [m for m in sys.modules if m.startswith("nanogpt_lib")]:
        del sys.modules[loaded]
    importlib.import_module("nanogpt_lib." + name)
    heavy = {"transformers", "matplotlib", "pyarrow", "IPython"} & set(sys.modules)
    if name.startswith("recipes."):  # they come last
        heavy -= {"pyarrow"}  # a recipe reads parquet
    assert not heavy, f"{name} imports {heavy}"
    changed = [(old, new) for old, new in zip(before, state()) if old != new]
    assert not changed, f"{name} changes {changed}"
"""
    command = [
        sys.executable,
        "-c",
        script,
        *sorted(MODULES, key=lambda m: m.startswith("recipes.")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "tests")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def imports_of(file: Path) -> set[str]:
    """The modules of the library that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # `from nanogpt_lib import x` names a module after the word import
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= {name.removeprefix("nanogpt_lib.") for name in names}
    return found & set(MODULES)


def floor_of(name: str) -> str:
    """The layer of a module: support, lesson, run part or program."""
    text = FILES[name].read_text(encoding="utf-8")
    if name.startswith("support."):
        return "support"
    if "\nExported from notebooks/" in text:
        return "lesson"
    return "program" if '__name__ == "__main__"' in text else "run part"


def test_modules_import_only_from_lower_floors():
    """Programs import run parts, these lessons, and these support: nothing upwards, no cycles."""
    allowed = {
        "support": {"support"},
        "lesson": {"support", "lesson"},
        "run part": {"support", "lesson", "run part"},
        "program": {"support", "lesson", "run part"},
    }
    floors = {name: floor_of(name) for name in MODULES}
    assert set(floors.values()) == set(allowed)
    graph = {name: imports_of(FILES[name]) for name in MODULES}
    for name, used in graph.items():
        wrong = {
            other: floors[other] for other in used if floors[other] not in allowed[floors[name]]
        }
        assert not wrong, f"{name}, a {floors[name]}, imports {wrong}"
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_a_chapter_shows_what_it_changed_in_an_earlier_definition(tmp_path):
    old = "#| export\n@cache\ndef f(x):\n    a = 1\n    b = 2\n    return x < 1\n\n\nX = {1: 2}"
    new = old.replace("f(x)", "f(x, y)").replace("#| export", "#| export toy replaces")
    export_cells(tmp_path, (*HEAD, "#| export\nfrom functools import cache", old), (new,))
    shown = difference("f", chapter=2, notebooks=tmp_path / "notebooks")
    assert repr(shown) == " @cache\n-def f(x):\n+def f(x, y):\n     a = 1"
    wide = difference("f", chapter=2, context=9, notebooks=tmp_path / "notebooks")
    assert wide.splitlines()[-1] == "     return x < 1"
    assert "return x &lt; 1" in wide._repr_html_()
    assert wide._repr_html_().count("rgba(46") == wide._repr_html_().count("rgba(248") == 1
    for name, chapter in (("f", 1), ("f", 3), ("g", 2)):
        with pytest.raises(LookupError, match=f"{chapter} replaces no definition of {name}"):
            difference(name, chapter, notebooks=tmp_path / "notebooks")
