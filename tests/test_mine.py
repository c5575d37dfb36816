"""`pytest tests/mine --mine FILE`: a right GPT passes, each mistake gets the hint for it."""

import json
import subprocess
import sys

import pytest

from conftest import ROOT

MINE = ROOT / "tests" / "fixtures" / "mine" / "my_gpt.py"

# name: (right, wrong, words of the test's name, the hint)
MISTAKES = {
    "no mask": ('self.mask[:T, :T] == 0, float("-inf")', "self.mask[:T, :T] == 7, 0.0",
                "later_token", "mask before softmax"),
    "heads and time mixed": (".transpose(1, 2).contiguous().view(B, T, C)", ".reshape(B, T, C)",
                             "later_token", "mask before softmax"),
    "no positions": (" + self.transformer.wpe(torch.arange(T))", "", "token_stands", "wpe"),
    "all positions": ("torch.arange(T)", "torch.arange(self.config.block_size)",
                      "shorter_than", "cut positions"),
    "untied": ("self.lm_head.weight = self.transformer.wte.weight", "pass",
               "number_of_parameters", "one tensor"),
    "another shape": ("4 * config.n_embd", "3 * config.n_embd", "number_of_parameters", "has"),
    "PyTorch's initialisation": ("self.apply(self.init)", "pass", "first_loss", "std 0.02"),
    "exact GELU": ('approximate="tanh"', 'approximate="none"', "computes_gpt2s", "exact GELU"),
    "no final norm": ("self.transformer.ln_f(x)", "x", "gets_a_gradient", "transformer.ln_f"),
    "summed loss": ("targets.view(-1))", 'targets.view(-1), reduction="sum")',
                    "mean_cross_entropy", "32.000 times the mean"),
    "no crop": ("idx[:, -model.config.block_size :]", "idx", "context_is_full", "block_size"),
    "always the maximum": ("torch.multinomial(F.softmax(logits, dim=-1), 1)",
                           "logits.argmax(dim=-1, keepdim=True)", "same_seed", "drawn at all"),
    "top-k upside down": ("logits < kth", "logits >= kth", "k_likeliest", "were not among"),
    "no targets": ("buf[1:]", "buf[:-1]", "one_token_later", "plus 1"),
    "a gap": ("self.at += n", "self.at += n + 1", "every_window_once", "never read"),
    "no second epoch": ("self.at = 0\n        buf", "pass\n        buf",
                        "starts_again", "Start again"),
    "a wasted step": ("(it + 1) / 715", "it / 715", "learning_rate", "wasted"),
    "no floor": ("return 6e-5\n", "return 0.0\n", "learning_rate", "stays at 6e-5"),
    "decay of norms": ('"weight_decay": 0.0', '"weight_decay": weight_decay', "matrices_decay",
                       "should not decay"),
    "default betas": (", betas=(0.9, 0.95)", "", "constants", "0.95"),
}  # fmt: skip

RUN = """
import contextlib, io, json, sys, pytest
for file, words in json.loads(sys.argv[1]):
    out = io.StringIO()
    options = ["-p", "no:cacheprovider", "-p", "no:xdist", *(["-k", words] if words else [])]
    with contextlib.redirect_stdout(out):
        status = pytest.main(["tests/mine", "--mine", file, *options])
    print(json.dumps([int(status), out.getvalue()]))
"""


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory) -> dict[str, tuple[int, str]]:
    """Status and output of the tests for the right file and for each mistake; one process."""
    folder, text = tmp_path_factory.mktemp("mine"), MINE.read_text(encoding="utf-8")
    todo = [(str(MINE), "")]
    for number, (name, (right, wrong, words, _)) in enumerate(MISTAKES.items()):
        assert right in text, f"{name}: nothing to replace"
        path = folder / f"mistake_{number}.py"
        path.write_text(text.replace(right, wrong), encoding="utf-8")
        todo.append((str(path), words))
    (folder / "part.py").write_text("def get_lr(it):\n    return 0.0\n")
    todo += [(str(folder / "part.py"), ""), (str(folder / "none.py"), "")]
    command = [sys.executable, "-c", RUN, json.dumps(todo)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=500)
    assert done.returncode == 0, done.stderr
    results = [tuple(json.loads(line)) for line in done.stdout.splitlines()]
    return dict(zip(["right", *MISTAKES, "part", "none"], results, strict=True))


def test_a_right_gpt_passes_every_test(verdicts):
    status, text = verdicts["right"]
    assert status == 0 and "22 passed" in text


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_its_hint_and_no_traceback(name, verdicts):
    status, text = verdicts[name]
    assert status == 1 and "Traceback" not in text
    assert MISTAKES[name][3] in text


def test_what_is_not_there_yet_is_skipped(verdicts):
    status, text = verdicts["part"]
    assert status == 1 and "1 failed" in text and "no GPT in the file yet" in text


def test_a_missing_file_is_one_line(verdicts):
    status, text = verdicts["none"]
    assert status == 2 and "no such file" in text


def test_without_a_file_nothing_is_collected():
    command = [sys.executable, "-m", "pytest", "tests/mine", "--collect-only", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=100)
    assert done.returncode == 5 and "::" not in done.stdout  # 5: no tests
