"""Shared fixtures and helpers: a small dataset, a small run, programs as real processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from browser import browser  # noqa: F401 (a fixture)

ROOT = Path(__file__).resolve().parents[1]

TINY = (
    "--n-layer 1 --n-head 2 --n-embd 32 --block-size 32 --batch-size 4 --total-batch-size 256 "
    "--max-steps 6 --warmup-steps 2 --eval-every 3 --eval-tokens 960 --save-every 2 "
    "--keep-checkpoints 0 --sample-every 0 --sample-tokens 8 --device cpu --dtype float32 "
    "--learning-rate 4e-3 --min-lr 1e-4 --weight-decay 0 --sample-prompt The"
).split()

# how a model.py of another project begins
THEIR_CONFIG = """
from dataclasses import dataclass
import torch

@dataclass
class GPTConfig:
    block_size: int = 8
    vocab_size: int = 50257
    n_layer: int = 1
    n_head: int = 1
    n_embd: int = 8
    bias: bool = True
    dropout: float = 0.0
"""


@pytest.fixture
def fresh_trials():
    """Make the test try the formats of packed weights again."""
    from nanogpt_lib.support.weight_formats import works

    works.cache_clear()
    yield
    works.cache_clear()


def said(capsys, check, answer) -> str:
    """Run an exercise's check; its text, which must begin with the verdict it returns."""
    right = check(answer)
    text = capsys.readouterr().out
    assert text.startswith("Right." if right else ("Not yet:", "Nothing to check"))
    assert "Traceback" not in text
    return text


def write_tiny_data(folder: Path) -> Path:
    """A character dataset of repetitive English that a small model can learn."""
    from nanogpt_lib.recipes.text import write_splits
    from nanogpt_lib.tokenizer import CharTokenizer

    rng = np.random.default_rng(0)
    words = "the a cat dog sees hears runs to from and with big small The quick red fox.".split()
    text = " ".join(rng.choice(words, 6000))
    tokenizer = CharTokenizer(text)
    ids = np.array(tokenizer.encode(text))
    meta = {
        "name": "tiny",
        "source": "random words",
        "tokenizer": tokenizer.describe(),
        "vocab_size": tokenizer.vocab_size,
    }
    write_splits(folder, meta, ids[:-3000], ids[-3000:])
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """The dataset of `write_tiny_data`."""
    return write_tiny_data(tmp_path_factory.mktemp("data") / "tiny")


def free_port() -> int:
    """A port on this machine that nobody uses."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def program(*args, ranks: int = 0, cwd: Path | None = None, timeout: float = 300):
    """Run a program of the library by path, as a user would; with ranks, under torchrun."""
    launch = [sys.executable]
    if ranks:
        launch += ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}"]
        launch += ["--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    command = [*launch, str(ROOT / "nanogpt_lib" / args[0]), *map(str, args[1:])]
    env = {**os.environ, "PYTHONPATH": ""}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd or ROOT, timeout=timeout, env=env
    )


def log_of(out: Path) -> list[dict]:
    """The records of a run's log without times and speeds."""
    clock = ("crc", "tokens_per_sec", "mfu", "seconds", "slowest_rank", "slowest_ratio")
    lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


@pytest.fixture(scope="session")
def tiny_run(tiny_data, tmp_path_factory) -> Path:
    """A finished run of train.py, made by a real process from another directory."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    done = program("train.py", *TINY, "--data", tiny_data, "--out", out, cwd=out.parent)
    assert done.returncode == 0, done.stderr
    (out / "stdout.txt").write_text(done.stdout, encoding="utf-8")
    return out


def pytest_addoption(parser):
    """Add --mine, for tests/mine: a learner's own GPT."""
    parser.addoption("--mine", metavar="FILE", help="test your own GPT (pytest tests/mine)")


def pytest_configure(config):
    """With --mine, print hints without tracebacks, and why something was skipped."""
    if config.getoption("--mine"):
        config.option.tbstyle, config.option.reportchars = "line", "s"


def pytest_ignore_collect(collection_path, config):
    """Leave out tests/mine where no file is given."""
    without = collection_path.is_relative_to(ROOT / "tests" / "mine")
    return True if without and not config.getoption("--mine") else None


def pytest_terminal_summary(terminalreporter):
    """Say in one line what was not tried because there is no browser."""
    from browser import why_not

    skipped = terminalreporter.stats.get("skipped", [])
    if why_not() and (missed := [r for r in skipped if why_not() in str(r.longrepr)]):
        terminalreporter.write_line(
            f"{len(missed)} tests of the web book and of models in a page skipped: {why_not()}"
        )
