"""notebooks/runbook.md: its numbers, and that the rehearsal executes every command of it.

`make rehearse` executes them; here is what needs no minutes.
"""

import re
import shlex

import rehearse
from readme import README

from conftest import ROOT
from nanogpt_lib.arguments import parse_config
from nanogpt_lib.published import band

PAGE = (ROOT / "notebooks/runbook.md").read_text(encoding="utf-8")


def numbers(row: str) -> list[float]:
    """The numbers in a row of the page's table of losses."""
    (cells,) = re.findall(rf"^\| {re.escape(row)} \|(.*)\|$", PAGE, re.M)
    steps = {"end": 19_560}
    return [steps.get(cell.strip()) or float(cell.replace(",", "")) for cell in cells.split("|")]


def test_the_losses_of_the_page_are_the_doctors():
    steps = numbers("step")
    normal = numbers("llm.c's validation loss, on FineWeb")
    limits = numbers("stop above")
    assert len(steps) == len(normal) == len(limits) == 9
    for step, loss, limit in zip(steps, normal, limits, strict=True):
        usual, highest = band(step * 2**19)
        assert abs(loss - usual) <= 0.051 and abs(limit - highest) <= 0.051, step


def test_every_command_is_rehearsed_and_every_change_is_used():
    """Only what needs another machine stands outside of the ```bash blocks."""
    lines = rehearse.page_lines()
    assert len(lines) >= 15
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.M | re.S)
    for line in "".join(text for language, text in fenced if not language).splitlines():
        assert line.split()[0] in ("rsync", "git", "sha256sum"), line
    for old, _ in rehearse.SMALL:
        assert any(old in line for line in lines), old
    assert not any("8" in word for line in lines for word in rehearse.small(line).split()
                   if word.startswith("--nproc"))  # fmt: skip


def test_the_check_before_the_start_has_the_flags_of_the_run():
    lines = rehearse.page_lines()
    launch = next(line for line in lines if line.startswith("tmux new-session"))
    run = shlex.split(re.search(r'"(.*?) 2>&1', launch)[1])
    check = shlex.split(next(line for line in lines if "--preflight" in line))
    after = [words[words.index("nanogpt_lib/train.py") + 1 :] for words in (run, check)]
    configs = [parse_config(words) for words in after]
    assert configs[0].auto_resume and configs[1].preflight
    apart = {"auto_resume", "preflight", "price", "flags"}
    ours, theirs = ({k: v for k, v in vars(c).items() if k not in apart} for c in configs)
    assert ours == theirs
    assert "--nproc_per_node=8" in run and "--nproc_per_node=8" in check
    assert "tee -ai gpt2-124m.txt" in launch  # an error message outlives the window


def test_readme_leads_to_the_page():
    assert "(notebooks/runbook.md)" in README and "`make rehearse`" in README
