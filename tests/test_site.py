"""The web book's sources: what becomes of a notebook's cells, of its prose, of the library."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conftest import ROOT

pytest.importorskip("sphinx_book_theme", reason="the web book's packages: pip install .[site]")
sys.path.insert(0, str(ROOT / "tools/site"))
import build  # noqa: E402
from chapter import Chapter, page_of, solution_cells  # noqa: E402
from library import plain, read_library  # noqa: E402
from mathml import to_mathml  # noqa: E402
from prose import link_times, relink, space_formulas, without_navigation  # noqa: E402
from terms import anchor_of, linked, pattern, read_terms, slug  # noqa: E402

VIDEO = "https://www.youtube.com/watch?v=l8pRSuU81PU"


def md(text: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def code(text: str, *outputs: dict, **metadata) -> dict:
    return {
        "cell_type": "code",
        "metadata": metadata,
        "source": text,
        "outputs": list(outputs),
        "execution_count": 1,
    }


META = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
PICTURE = {
    "output_type": "display_data",
    "data": {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"},
    "metadata": {},
}
PRINTED = {"output_type": "stream", "name": "stdout", "text": "42\n"}


@pytest.fixture
def toy(tmp_path) -> Path:
    """A repository with two chapters, one of which replaces what the other exports."""
    first = [
        md(
            "# 01 · One\n\n> Halves numbers.\n\n**Lecture** 0:03:39–0:13:47\n\n"
            "[02 · Two →](02_two.ipynb)"
        ),
        code("#| default_exp half"),
        code("import os\n\nSMOKE = os.environ"),
        code("#| export\nimport math"),
        code('#| export\ndef half(x):\n    """x / 2."""\n    return x / 2'),
        md(
            "## A picture (0:03:39)\n\n"
            "See [half](../nanogpt_lib/half.py) and [the licence](../LICENSE)."
        ),
        code(
            "fig, ax = plt.subplots()\nax.plot(x)\nax.plot(y)\n"
            "ax.set(title='Halves', xlabel='x', ylabel='half of x')",
            PICTURE,
        ),
        md("## Exercises\n\n**1 ★ Predict.** Half of 84?\n\n**2 ★★ Change.** Thirds."),
        code("answer_1 = None", {**PRINTED, "text": "Not yet\n"}),
        md("## Summary\n\nDone."),
    ]
    second = [
        md("# 02 · Two\n\n> More."),
        code("#| default_exp half"),
        code('#| export replaces\ndef half(x):\n    """x / 2, exactly."""\n    return x * 0.5'),
    ]
    solved = [
        md("# Solutions\n\n**1 ★ Predict.** Divide."),
        code("answer_1 = 42\nprint(answer_1)", PRINTED, PICTURE),
    ]
    for name, cells in {"01_one": first, "02_two": second, "solutions/01_one": solved}.items():
        path = tmp_path / f"notebooks/{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        notebook = {"cells": cells, "metadata": META, "nbformat": 4, "nbformat_minor": 4}
        path.write_text(json.dumps(notebook), encoding="utf-8")
    (tmp_path / "nanogpt_lib").mkdir()
    (tmp_path / "nanogpt_lib/half.py").write_text(
        '"""Halves."""\n\n\ndef half(x):\n    """x / 2."""\n'
    )
    return tmp_path


def staged(root: Path, name: str) -> list[dict]:
    book = build.make_book(root)
    chapter = Chapter.read(root, f"notebooks/{name}.ipynb")
    return page_of(chapter, solution_cells(root, chapter, book), book)["cells"]


def text_of(cells: list[dict]) -> str:
    return "\n\n".join(cell["source"] for cell in cells)


def test_export_marks_are_gone_and_the_library_file_is_named(toy):
    cells = staged(toy, "01_one")
    assert "#|" not in text_of(cells)
    where = next(i for i, c in enumerate(cells) if c["source"].startswith("def half"))
    assert "Goes into [nanogpt_lib/half.py](../library/half.md)" in cells[where - 1]["source"]


def test_setup_and_drawing_are_folded_and_the_rest_is_open(toy):
    cells = [c for c in staged(toy, "01_one") if c["cell_type"] == "code"]
    folded = {
        c["source"].split("\n")[0]: "hide-input" in c["metadata"].get("tags", []) for c in cells
    }
    assert folded == {"import os": True, "def half(x):": False, "fig, ax = plt.subplots()": True}
    assert "import math" in cells[0]["source"]  # neighbours behind one handle


def test_a_figure_says_what_it_shows(toy):
    figure = next(c for c in staged(toy, "01_one") if c["source"].startswith("fig"))
    alt = figure["metadata"]["mystnb"]["image"]["alt"]
    wanted = "Figure in the section “A picture”; Halves; horizontal axis: x; vertical axis: half"
    assert alt == wanted + " of x."


def test_exercises_become_cards_with_their_solutions_inside(toy):
    text = text_of(staged(toy, "01_one"))
    assert "Not yet" not in text
    first, second = text.index("Exercise 1 ★ Predict"), text.index("Exercise 2 ★★ Change")
    solution = text.index("Solution of exercise 1")
    assert (
        first
        < text.index("Half of 84?")
        < solution
        < text.index("answer_1 = 42")
        < text.index("42\n```")
    )
    assert solution < text.index('alt="Figure of the worked solution"') < second
    assert second < text.index("Thirds.") and "Solution of exercise 2" not in text
    assert text.index("## Summary") > max(second, solution) or "answer_1 = None" in text[second:]


def test_a_replaced_cell_shows_what_changed(toy):
    text = text_of(staged(toy, "02_two"))
    assert "replaces `half` of [](./01_one.ipynb)" in text
    assert "What changed since chapter 01" in text
    assert "-    return x / 2" in text and "+    return x * 0.5" in text


def test_a_difference_that_the_notebook_prints_is_not_repeated():
    cells = staged(ROOT, "03_sampling")
    shown = [c["source"] for c in cells if "What changed since" in c["source"]]
    assert not any("CausalSelfAttention(nn.Module)" in s and "def forward" in s for s in shown)


def test_links_lead_to_pages_or_to_nothing(toy):
    text = text_of(staged(toy, "01_one"))
    assert "[half](../library/half.md)" in text
    assert "LICENSE" not in text and "the licence" in text  # no address is known
    assert "→" not in text  # the book has its own way to the next chapter


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("at 0:33:31.", f"at [0:33:31]({VIDEO}&t=2011s)."),
        ("0:00:00–0:13:47", f"[0:00:00]({VIDEO}&t=0s)–[0:13:47]({VIDEO}&t=827s)"),
        ("`0:33:31` and [0:33:31](x)", "`0:33:31` and [0:33:31](x)"),
        ("7:00:00, 10:33:31, 0:61:00", "7:00:00, 10:33:31, 0:61:00"),
        ("```\n0:01:47 left\n```", "```\n0:01:47 left\n```"),
    ],
)
def test_times_of_the_lecture_open_the_video(text, wanted):
    assert link_times(text) == wanted


def test_displayed_formulas_stand_alone():
    text = "A temperature:\n$$p = 1\n+ 2$$\nwhere"
    assert space_formulas(text) == "A temperature:\n\n$$p = 1\n+ 2$$\n\nwhere"
    assert space_formulas("a $$x$$ b") == "a $$x$$ b"


def test_links_inside_code_stay():
    text = "`[a](b)` [c](d.ipynb)\n\n```\n[e](f)\n```\n[g](https://h)"
    assert relink("[c](d.ipynb)\n\n```\n[e](f)\n```\n[g](https://h)", lambda _: None) == (
        "c\n\n```\n[e](f)\n```\n[g](https://h)"
    )
    assert without_navigation("[← 01 · A](a) · [03 · B →](b)\n") == ""
    assert text


def test_formulas_become_mathml_and_unknown_commands_are_errors():
    text = to_mathml(r"\frac{e^{z_i/\tau}}{\sum_j e^{z_j}}, z \in \mathbb{R}^V", "block")
    assert text.startswith("<math") and "mfrac" in text and "$" not in text
    assert "mspace" in to_mathml(r"\ln 5", "inline")  # ln 5, not ln5
    assert 'stretchy="false"' in to_mathml(r"\lVert g \rVert", "inline")
    with pytest.raises(ValueError, match="notacommand"):
        to_mathml(r"\notacommand{x}", "inline")


def test_every_formula_of_the_notebooks_is_understood():
    formulas = []
    for path in sorted((ROOT / "notebooks").rglob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "markdown":
                text = re.sub(r"```.*?```|`[^`]*`", "", "".join(cell["source"]), flags=re.S)
                formulas += re.findall(r"\$\$(.+?)\$\$", text, re.S)
                formulas += re.findall(r"\$([^$]+)\$", re.sub(r"\$\$.+?\$\$", "", text, flags=re.S))
    assert len(formulas) > 200
    for formula in formulas:
        assert to_mathml(formula, "inline")


def test_the_first_use_of_a_term_is_linked():
    entries = read_terms(
        "- **token** (01): A piece.\n- **DDP, data parallel** (07): Many\n  processes.\n"
    )
    assert entries[1] == (["DDP", "data parallel"], "07", "Many processes.")
    forms = {form: slug(names[0]) for names, _, _ in entries for form in names}
    seen = set()
    nodes = linked("Tokens, a token, tokenizers, DDP, ddp.", pattern(forms), forms, seen, "g.html")
    links = [(n.astext(), n["refuri"]) for n in nodes if n.tagname == "reference"]
    assert links == [("Tokens", "g.html#term-token"), ("DDP", "g.html#term-ddp")]
    assert len(linked("token and DDP", pattern(forms), forms, seen, "g.html")) == 1
    words = pattern({"block": "b"})
    assert len(linked(" block that", words, {"block": "b"}, set(), "g", after_code=True)) == 1
    assert len(linked("a block quote", words, {"block": "b"}, set(), "g")) == 1
    assert anchor_of("Data parallel", {"data parallel": "x"}) == "x"


def test_the_glossary_names_existing_chapters_and_is_in_order():
    entries = read_terms((ROOT / "notebooks/glossary.md").read_text(encoding="utf-8"))
    chapters = {f.name[:2] for f in build.chapter_files(ROOT)}
    assert len(entries) >= 60
    assert {chapter for _, chapter, _ in entries} <= chapters
    forms = [form for names, _, _ in entries for form in names]
    assert len(forms) == len(set(forms))
    firsts = [names[0].lower() for names, _, _ in entries]
    assert firsts == sorted(firsts)


def test_buttons_exist_only_for_known_addresses():
    assert (
        build.theme_options({"repository": "", "branch": "main", "colab": "", "binder": ""}) == {}
    )
    assert build.theme_options({}) == {}
    site = {"repository": "https://github.com/a/b", "colab": "https://colab.research.google.com"}
    options = build.theme_options(site)
    assert options["repository_url"] == "https://github.com/a/b"
    assert options["launch_buttons"] == {"colab_url": "https://colab.research.google.com"}


def run_build(root: Path, out: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "tools/site/build.py", "--root", root, "--out", out]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_chapter_has_buttons_for_the_addresses_in_pyproject(toy, tmp_path):
    settings = '[tool.nanogpt.site]\nrepository = "https://github.com/a/b"\n'
    hosts = 'colab = "https://colab.research.google.com"\nbinder = "https://mybinder.org"\n'
    (toy / "pyproject.toml").write_text(settings + hosts, encoding="utf-8")
    done = run_build(toy, toy / "out")
    assert done.returncode == 0, done.stderr
    page = (toy / "out/notebooks/01_one.html").read_text(encoding="utf-8")
    where = "github/a/b/blob/main/notebooks/01_one.ipynb"
    assert f'href="https://colab.research.google.com/{where}"' in page
    assert 'href="https://mybinder.org/v2/gh/a/b/main?' in page
    assert 'href="https://github.com/a/b/blob/main/LICENSE"' in page


def test_a_warning_fails_the_build(toy):
    path = toy / "notebooks/02_two.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["cells"].append(md(r"A formula $\notacommand{x}$."))
    path.write_text(json.dumps(notebook), encoding="utf-8")
    done = run_build(toy, toy / "out")
    assert done.returncode == 1 and "notacommand" in done.stderr and "02_two" in done.stderr
    assert done.stderr.endswith("the warnings above must be mended first\n")


def test_a_damaged_notebook_gets_one_line(toy):
    (toy / "notebooks/02_two.ipynb").write_text('{"cells": [', encoding="utf-8")
    done = run_build(toy, toy / "out")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("build.py: ") and "02_two" in done.stderr


def test_docstrings_keep_their_stars_and_code():
    assert plain("a*b of `x_y` [1]\n\n    x = 1\n") == "a\\*b of `x_y` \\[1\\]\n\n    x = 1\n"


def test_every_public_function_of_the_library_is_documented_there():
    modules = read_library(ROOT)
    assert {"model", "sampling", "support.errors", "recipes.text"} <= set(modules)
    names = {s.name for s in modules["model"].symbols}
    assert {"GPT", "GPTConfig", "Block", "CausalSelfAttention"} <= names


def test_another_folder_is_never_emptied(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    command = [sys.executable, ROOT / "tools/site/build.py", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "choose another --out" in done.stderr
    assert done.stderr.count("\n") == 1 and (tmp_path / "precious.txt").read_text() == "mine"


def test_without_a_browser_one_line_says_what_is_skipped(tmp_path):
    book_tests = [ROOT / "tests/test_site_book.py", "-k", "search_finds or dark_and_light"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *book_tests],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout
    said = [line for line in done.stdout.splitlines() if "apt-get install chromium" in line]
    assert len(said) == 1 and said[0].startswith("2 tests of the web book"), done.stdout


def test_the_publishing_workflow_is_well_formed():
    workflow = yaml.safe_load((ROOT / ".github/workflows/pages.yml").read_text(encoding="utf-8"))
    build_job, publish = workflow["jobs"]["build"], workflow["jobs"]["publish"]
    assert publish["needs"] == "build"
    assert publish["permissions"] == {"pages": "write", "id-token": "write"}
    steps = build_job["steps"] + publish["steps"]
    assert all(("uses" in step) != ("run" in step) for step in steps)
    runs = " ".join(step.get("run", "") for step in steps)
    folder = next(s["with"]["path"] for s in steps if "upload-pages" in s.get("uses", ""))
    assert f"tools/site/build.py --out {folder}" in runs
    assert all("@" in step["uses"] for step in steps if "uses" in step)
