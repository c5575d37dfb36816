"""What `tools/nb.py check` measures of a chapter, and the terms it finds used too early."""

import sys

import nbformat.v4 as v4

from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import anatomy  # noqa: E402


def chapter(*prose: str):
    """A notebook: title, goal, then these paragraphs, a little code, and a summary."""
    cells = [v4.new_markdown_cell(text) for text in ("# Title", "## Goal: a loss", *prose)]
    loud = v4.new_code_cell("x = 1\n\nassert x", outputs=[v4.new_output("stream", text="1")])
    exported = v4.new_code_cell("#| export\ndef f():\n    return 2")
    setup = v4.new_code_cell("import a\nimport b\nimport c\nimport d")
    setup.metadata["jupyter"] = {"source_hidden": True}
    return v4.new_notebook(cells=[*cells, loud, exported, setup, v4.new_markdown_cell("## End")])


def test_the_numbers_of_a_chapter():
    found = anatomy.measure(chapter("Three words here, [a link](x.md)."))
    assert found["cells"] == 7 and found["links"] == 1 and found["figures"] == 0
    assert found["lines"] == 2  # of the shown cells: empty lines and marks do not count
    assert found["exported"] == 2 / 8 and found["output"] == 1 / 2 and found["verify"] == 1 / 3


def test_a_term_of_a_later_chapter_is_found_once_and_only_in_plain_prose(tmp_path):
    (tmp_path / "glossary.md").write_text(
        "- **loss** (04): how wrong.\n- **DDP, data parallel** (07): many.\n- **token** (01): x\n"
    )
    glossary = anatomy.read_glossary(tmp_path / "glossary.md")
    assert glossary == {"loss": 4, "DDP": 7, "data parallel": 7, "token": 1}
    early = ["Losses fall.", "The loss of a token. A loss again.", "ddp is a rapper; DDP is not."]
    assert anatomy.forward_uses(chapter(*early), 2, glossary) == ["[3] loss (04)", "[4] DDP (07)"]
    allowed = ["Chapter 04, or chapter 04's loss.", "`loss` and $loss$ and [x](loss.md)", "glossy"]
    assert anatomy.forward_uses(chapter(*allowed), 2, glossary) == []
    assert anatomy.forward_uses(chapter(*early), 7, glossary) == []
