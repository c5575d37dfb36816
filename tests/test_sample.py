"""What the sampling program promises."""

import pytest
import torch

from conftest import program
from nanogpt_lib import sample
from nanogpt_lib.huggingface import save_huggingface
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.prompts import first_token, prompt_tokens, read_prompt
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.weight_formats import LOSSY, works
from nanogpt_lib.tokenizer import CharTokenizer, GPT2Tokenizer


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
        (["--prompt", "the ß"], "--prompt: character 'ß' is not in the alphabet of"),
        (["--prompt", "FILE:nowhere.txt"], "FILE:nowhere.txt: cannot be read"),
        (["--prompt", "FILE:"], "FILE:: cannot be read"),
        (["--prompt", "the", "--temperature", "nan"], "--temperature"),
        (["--prompt", "the", "--checkpoint", "no/such/run"], "no/such/run"),
        (["--prompt", "the", "--top-p", "0"], "--top-p"),
        (["--prompt", "the", "--num-samples", "0"], "at least 1"),
        (["--prompt", "the", "--weights", "int8", "--dtype", "bfloat16"], "leave out --dtype"),
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


@pytest.mark.parametrize("weights", LOSSY)
def test_rounded_weights_are_announced_with_their_cost(tiny_run, weights, capsys):
    flags = ["--checkpoint", str(tiny_run), "--device", "cpu", "--num-samples", "1"]
    sample.main([*flags, "--prompt", "The ", "--weights", weights])
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if weights in line]
    assert len(lines) == 1 and said.out.startswith("--- sample 1\nThe ")
    works_here = f"weights rounded to {weights}: where measured, perplexity "
    assert lines[0].startswith(works_here if works(weights) else f"no packed weights in {weights}")
    assert set(sample.COST) == set(LOSSY)


def test_rounded_weights_are_for_a_cpu(monkeypatch):
    monkeypatch.setattr(sample, "detect_device", torch.device)
    with pytest.raises(UserError, match="--weights int8: only on a CPU"):
        sample.main(["--checkpoint", "gpt2", "--device", "cuda", "--weights", "int8"])


# ---- prompts


def hugging_face(folder, tokenizer, save_tokenizer=True) -> str:
    """A tiny random model with a tokenizer, as a Hugging Face folder."""
    torch.manual_seed(0)
    shape = dict(block_size=16, n_layer=1, n_head=1, n_embd=8)
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **shape))
    given = tokenizer if save_tokenizer else None
    save_huggingface(folder, vars(model.config), model.state_dict(), given)
    return str(folder)


def test_a_byte_order_mark_is_no_part_of_a_prompt(tiny_run, tmp_path, capsys):
    file = tmp_path / "bom.txt"
    file.write_bytes("\ufeffThe ".encode())
    flags = ["--checkpoint", tiny_run, "--num-samples", 1, "--temperature", 0]
    assert run(capsys, *flags, "--prompt", f"FILE:{file}") == run(
        capsys, *flags, "--prompt", "The "
    )
    assert read_prompt("\ufeffThe ") == "The "
    file.write_bytes("The ".encode("utf-16"))
    with pytest.raises(UserError, match=r"cannot be read as UTF-8 text") as error:
        read_prompt(f"FILE:{file}")
    assert "\n" not in str(error.value)


def test_endoftext_in_a_prompt_is_the_token_by_its_name():
    quiet: list[str] = []
    assert prompt_tokens(GPT2Tokenizer(), "<|endoftext|>The", 16, quiet.append) == [50256, 464]
    assert quiet == []


def test_an_empty_prompt_samples_from_nothing_and_says_where_it_begins(tmp_path, tiny_run, capsys):
    gpt2 = hugging_face(tmp_path / "gpt2", GPT2Tokenizer())
    sample.main(["--checkpoint", gpt2, "--device", "cpu", "--num-samples", "1"])
    printed = capsys.readouterr()
    assert "no prompt: the text begins after '<|endoftext|>'" in printed.err
    assert printed.out.startswith("--- sample 1\n") and "<|endoftext|>" not in printed.out
    sample.main(["--checkpoint", str(tiny_run), "--device", "cpu", "--prompt", ""])
    assert "no prompt: the text begins after " in capsys.readouterr().err


def test_without_a_newline_the_first_character_begins_also_in_chinese(tmp_path, capsys):
    chinese = CharTokenizer("天地玄黄宇宙洪荒日月盈昃辰宿列张")
    assert first_token(chinese) == 0 and first_token(CharTokenizer("ab\n")) == 0
    assert first_token(CharTokenizer("\tab\n")) == 1  # the newline, wherever it stands
    folder = hugging_face(tmp_path, chinese)
    out = run(capsys, "--checkpoint", folder, "--num-samples", 1, "--max-new-tokens", 5)
    assert out.startswith(f"--- sample 1\n{chinese.characters[0]}") and len(out.strip()) == 13 + 6


def test_of_a_prompt_over_the_context_the_end_is_taken_and_that_is_said(tiny_run, capsys):
    flags = ["--checkpoint", str(tiny_run), "--device", "cpu", "--num-samples", "1"]
    sample.main([*flags, "--temperature", "0", "--prompt", "the " * 100])
    long = capsys.readouterr()
    assert "the prompt has 400 tokens; the model sees the last 32" in long.err
    sample.main([*flags, "--temperature", "0", "--prompt", "the " * 8])
    assert capsys.readouterr().out == long.out


def test_a_million_spaces_are_a_prompt_like_any_other(tmp_path, capsys):
    file = tmp_path / "spaces.txt"
    file.write_text(" " * 1_000_000)
    folder = hugging_face(tmp_path / "gpt2", GPT2Tokenizer())
    flags = ["--checkpoint", folder, "--num-samples", "1", "--max-new-tokens", "3"]
    sample.main([*flags, "--device", "cpu", "--prompt", f"FILE:{file}"])
    assert "the prompt has 1,000,000 tokens; the model sees the last 16" in capsys.readouterr().err


def test_a_model_whose_tokenizer_is_not_known_gets_no_words(tmp_path, capsys):
    folder = hugging_face(tmp_path, CharTokenizer("abc"), save_tokenizer=False)
    with pytest.raises(UserError, match=r"no tokenizer; put .* or characters.json"):
        sample.main(["--checkpoint", folder, "--device", "cpu"])
    (tmp_path / "characters.json").write_text('"abc"')
    assert run(capsys, "--checkpoint", folder, "--prompt", "ab").startswith("--- sample 1\nab")


def test_what_the_terminal_cannot_show_does_not_end_the_program(tmp_path, monkeypatch):
    chinese = hugging_face(tmp_path / "hf", CharTokenizer("天地玄黄\n"))
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = program("sample.py", "--checkpoint", chinese, "--prompt", "天")
    assert done.returncode == 0 and done.stdout.startswith("--- sample 1\n?"), done.stderr


def test_the_source_is_said_on_stderr_and_the_text_alone_on_stdout(tiny_run, tmp_path):
    done = program("sample.py", "--checkpoint", tiny_run, "--prompt", "The ", "--num-samples", 1)
    assert done.returncode == 0 and done.stdout.startswith("--- sample 1\nThe ")
    assert done.stderr.startswith(f"{tiny_run}: our checkpoint step_000006, ")
    assert done.stderr.count("\n") == 1
