"""Terminals of any encoding, terminals that go away, and errors in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, TINY
from nanogpt_lib.support.cli import run_program
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.places import find_data

PYTHON = [sys.executable]
ENCODINGS = ["cp1252", "cp1251", "ascii"]


def run(command: list, encoding: str = "utf-8", **env) -> subprocess.CompletedProcess:
    """Run a program as a real process with this encoding of stdout and stderr; returns bytes."""
    env = {**os.environ, "PYTHONPATH": "", "PYTHONIOENCODING": encoding, **env}
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, capture_output=True, cwd=ROOT, env=env, timeout=300)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_recipe_prints_on_any_terminal(encoding, tmp_path):
    (tmp_path / "own.txt").write_text("天地玄黃 " * 99, encoding="utf-8")
    done = run([ROOT / "data/text.py", tmp_path / "own.txt", "--out", tmp_path / "made"], encoding)
    assert done.returncode == 0, done.stderr
    assert b" ? " in done.stdout  # where a terminal with Unicode shows an arrow
    assert (tmp_path / "made/meta.json").exists()


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_training_prints_on_any_terminal(encoding, tiny_data, tmp_path):
    flags = [*TINY, "--data", tiny_data, "--out", tmp_path / "run", "--sample-every", 3]
    done = run([ROOT / "nanogpt_lib/train.py", *flags], encoding)
    assert done.returncode == 0, done.stderr
    assert b"everything is in" in done.stdout


@pytest.mark.parametrize("name", ["train", "sample", "score", "bench", "doctor"])
def test_help_is_printed_on_any_terminal_from_any_directory(name, tmp_path):
    """--help begins with the docstring or lists every setting; no folder is put on the path."""
    env = {**os.environ, "PYTHONPATH": "", "PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, ROOT / f"nanogpt_lib/{name}.py", "--help"]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=env, timeout=300)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(f"usage: {name}.py".encode())


def test_samples_of_any_characters_are_printed_on_any_terminal(tmp_path):
    """A model whose alphabet fits no 8-bit encoding: its samples and errors are printed."""
    text = tmp_path / "own.txt"
    text.write_text("→ 天地玄黃 × " * 2000, encoding="utf-8")
    code = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "from nanogpt_lib.recipes.text import write_splits\n"
        "from nanogpt_lib.tokenizer import CharTokenizer\n"
        "text = Path(sys.argv[1]).read_text(encoding='utf-8')\n"
        "t = CharTokenizer(text); ids = np.array(t.encode(text))\n"
        "meta = dict(name='x', source='x', tokenizer=t.describe(), vocab_size=t.vocab_size)\n"
        "write_splits(Path(sys.argv[2]), meta, ids[:-2000], ids[-2000:])\n"
    )
    assert run(["-c", code, text, tmp_path / "data"]).returncode == 0
    flags = ["--data", tmp_path / "data", "--out", tmp_path / "run", "--sample-every", 3]
    flags += ["--sample-prompt", "天"]
    done = run([ROOT / "nanogpt_lib/train.py", *TINY, *flags], "cp1252")
    assert done.returncode == 0, done.stderr
    assert b"samples" in done.stdout and b"?" in done.stdout
    arguments = ["--checkpoint", tmp_path / "run", "--prompt", "天", "--max-new-tokens", 5]
    done = run([ROOT / "nanogpt_lib/sample.py", *arguments], "ascii")
    assert done.returncode == 0, done.stderr


def read_a_line_and_go(command: list, unbuffered: str) -> tuple[int, str]:
    """Status and stderr of a program whose reader exits after one line, like `head -1`."""
    env = {**os.environ, "PYTHONPATH": "", "PYTHONUNBUFFERED": unbuffered}
    pipe = subprocess.PIPE
    command = [sys.executable, *map(str, command)]
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, cwd=ROOT, env=env) as process:
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read().decode()
    return process.returncode, errors


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_run_goes_on_when_nobody_reads_its_output_any_more(unbuffered, tiny_data, tmp_path):
    flags = [*TINY, "--log-every", 1, "--data", tiny_data, "--out", tmp_path / "run"]
    done = read_a_line_and_go([ROOT / "nanogpt_lib/train.py", *flags], unbuffered)
    assert done == (0, "")
    assert (tmp_path / "run/checkpoints/step_000006").is_dir()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudoterminals of this kind")
def test_a_run_goes_on_when_its_terminal_is_closed(tiny_data, tmp_path):
    """As after `nohup` with a session that ends: writing to the terminal is an error (EIO)."""
    master, slave = os.openpty()
    flags = [*TINY, "--log-every", "1", "--data", tiny_data, "--out", tmp_path / "run"]
    command = [sys.executable, ROOT / "nanogpt_lib/train.py", *flags]
    process = subprocess.Popen(
        list(map(str, command)), stdout=slave, stderr=slave, cwd=ROOT, start_new_session=True
    )
    os.close(slave)
    os.read(master, 1)
    os.close(master)
    assert process.wait(timeout=120) == 0
    assert (tmp_path / "run/checkpoints/step_000006").is_dir()


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_program_that_only_prints_ends_quietly_when_nobody_reads(unbuffered):
    code = (
        "from nanogpt_lib.support.cli import run_program\n"
        "run_program('x.py', lambda: [print('line', i, flush=True) for i in range(100000)] and 0)\n"
    )
    assert read_a_line_and_go(["-c", code], unbuffered) == (141, "")


@pytest.mark.parametrize(
    "error, status, words",
    [
        (UserError("a mistake\nof two lines"), 1, "x.py: a mistake of two lines"),
        (PermissionError(13, "Permission denied", "/a/b"), 1, "x.py: /a/b: Permission denied"),
        (OSError(28, "No space left"), 1, "x.py: the disk is full; free some space; again"),
        (OSError(24, "Too many open files", "f"), 1, "x.py: f: too many open files"),
        (MemoryError(), 1, "x.py: out of memory"),
        (KeyboardInterrupt(), 130, "x.py: stopped; again"),
    ],
)  # fmt: skip
def test_what_a_user_can_mend_is_one_line_and_a_status(error, status, words, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        run_program("x.py", main, advice="again")
    assert end.value.code == status
    printed = capsys.readouterr().err
    assert printed.startswith(words) and printed.count("\n") == 1


def test_a_relative_path_of_data_is_found_from_any_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_data("data/pydocs.py") == ROOT / "data/pydocs.py"  # where the recipes write
    assert find_data("data/nowhere") == Path("data/nowhere")
    (tmp_path / "data/pydocs.py").mkdir(parents=True)
    assert find_data("data/pydocs.py") == Path("data/pydocs.py")  # the nearer one wins
    assert find_data(tmp_path / "data") == tmp_path / "data"
