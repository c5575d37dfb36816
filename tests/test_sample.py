"""What the sampling program promises."""

import pytest

from conftest import program
from nanogpt_lib import sample
from nanogpt_lib.support.errors import UserError


def run(capsys, *args) -> str:
    sample.main([*map(str, args), "--device", "cpu"])
    return capsys.readouterr().out


def test_the_program_continues_the_prompt_and_repeats_itself_for_a_seed(tiny_run, capsys):
    flags = ["--checkpoint", tiny_run, "--prompt", "The ", "--max-new-tokens", 20]
    first, again = run(capsys, *flags), run(capsys, *flags)
    other = run(capsys, *flags, "--seed", 43)
    assert first == again != other
    assert first.count("--- sample") == 4 and first.startswith("--- sample 1\nThe ")
    assert len(first.split("--- sample 2")[0]) == len("--- sample 1\nThe ") + 20 + 1


def test_a_prompt_can_come_from_a_file(tiny_run, tmp_path, capsys):
    file = tmp_path / "prompt.txt"
    file.write_text("The big", encoding="utf-8")
    flags = ["--checkpoint", tiny_run, "--num-samples", 1, "--temperature", 0]
    from_file = run(capsys, *flags, "--prompt", f"FILE:{file}")
    assert from_file == run(capsys, *flags, "--prompt", "The big")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "the " * 100], "the prompt has 400 tokens, over the context of 32"),
        (["--prompt", "FILE:nowhere.txt"], "FILE:nowhere.txt: cannot be read"),
        (["--prompt", "the", "--checkpoint", "no/such/run"], "no/such/run"),
        (["--prompt", "the", "--top-p", "0"], "--top-p"),
        (["--prompt", "the", "--num-samples", "0"], "at least 1"),
    ],
)
def test_bad_input_gets_one_clear_line(tiny_run, flags, expected):
    with pytest.raises(UserError, match=expected) as caught:
        sample.main(["--checkpoint", str(tiny_run), "--device", "cpu", *flags])
    assert "\n" not in str(caught.value)


def test_the_program_exits_with_one_line_and_status_1(tmp_path):
    done = program("sample.py", "--checkpoint", tmp_path, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("sample.py: ") and done.stderr.count("\n") == 1
