"""Check README's claims that take minutes: run its commands unchanged or scaled down.

    python tests/campaigns/claims.py [--only WORD] [--build-nanogpt DIR]

Commands for many GPUs run with two gloo processes and a small model; datasets are made from a small
mirror. Prints a line per claim; exit status 1 if one does not hold.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests
from readme import README, programs

from conftest import ROOT, TINY, write_tiny_data
from nanogpt_lib.presets import PRESETS

ENV = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
LOCAL = ["--standalone", "--local-addr=127.0.0.1", "--nproc_per_node=2"]


def run(words: list[str], cwd: Path, **env: str) -> str:
    """Run a command of this Python; return what it printed, or raise AssertionError."""
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**ENV, **env})
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    return done.stdout + done.stderr


def quickstart(work: Path) -> str:
    """The first command, with README's number of steps: it ends near the loss named there."""
    steps, claimed = re.search(r"step +(\d+) \| validation loss ([\d.]+)\n…", README).groups()
    run([ROOT / "data/pydocs.py", "--out", work / "pydocs"], work)
    flags = ["quickstart", "--data", work / "pydocs", "--out", work / "quickstart"]
    flags += ["--max-steps", steps]
    run([ROOT / "nanogpt_lib/train.py", *flags], work)
    lines = (work / "quickstart/log.jsonl").read_text(encoding="utf-8").splitlines()
    loss = [row["val_loss"] for row in map(json.loads, lines) if "val_loss" in row][-1]
    assert abs(loss - float(claimed)) < 0.03, f"{loss:.4f}, README says {claimed}"
    text = run(
        [ROOT / "nanogpt_lib/sample.py", "--checkpoint", work / "quickstart", "--prompt", "The "],
        work,
    )
    assert "The " in text
    return f"validation loss {loss:.4f}, README says {claimed}"


def training_lines(work: Path) -> str:
    """Every line that trains, with two processes and a small model; then its run is resumed."""
    lines = {c: w for c, w in programs().items() if w[0].endswith("train.py") and "[" not in c}
    tuned = {name for name, preset in PRESETS.items() if "init_from" in preset} | {"--init-from"}
    lines = {c: w for c, w in lines.items() if not tuned & set(w)}  # they bring their own tokens
    assert len(lines) >= 5
    for number, (command, words) in enumerate(lines.items()):
        if "--resume" in words or "--auto-resume" in words:
            continue
        launch = ["-m", "torch.distributed.run", *LOCAL] if command.startswith("torchrun") else []
        small = [*words[1:], *TINY, "--data", work / "tiny", "--out", work / f"run{number}"]
        small += ["--optimizer", "adamw", "--hellaswag-every", "0", "--batch-size", "4"]
        small += ["--compile", "off", "--block-size", "32"]
        said = run([*launch, ROOT / "nanogpt_lib/train.py", *small], work)
        if "--preflight" in words:
            assert "ready: the same command without --preflight" in said, command
            continue
        assert "everything is in" in said, command
        rest = ["--resume", "--out", work / f"run{number}", "--max-steps", "8"]
        said = run([*launch, ROOT / "nanogpt_lib/train.py", *rest], work)
        assert "resumed from" in said, command
    return f"{len(lines)} lines"


def answering(work: Path) -> str:
    """The tasks, the recorded model fine-tuned on them in fewer steps, and a question to it."""
    run([ROOT / "data/tasks.py", "--out", work / "tasks"], work)
    tuned = ["finetune-tasks", "--data", work / "tasks", "--out", work / "tuned"]
    run([ROOT / "nanogpt_lib/train.py", *tuned, "--max-steps", "200"], work)
    ask = ["--checkpoint", work / "tuned", "--ask", "What is 12 plus 30?"]
    answer = run([ROOT / "nanogpt_lib/chat.py", *ask], work).split("\n")[0]
    assert re.fullmatch(r"\d+\.?", answer), f"no number: {answer!r}"
    return f"asked for 12 plus 30 after 200 steps, it says {answer}"


def recipes(work: Path) -> str:
    """FineWeb's recipe on a mirror with one small file; HellaSwag's without the published items."""
    folder = work / "mirror/fineweb_edu_standin/sample/10BT"
    folder.mkdir(parents=True)
    texts = [f"Document {i}: the moon has {i} craters of a kind.\n" * 5 for i in range(2000)]
    pq.write_table(pa.table({"text": texts}), folder / "000_00000.parquet")
    for line in ("fineweb.py", "hellaswag.py", "pydocs.py"):
        words = [ROOT / "data" / line, "--out", work / line.removesuffix(".py")]
        run(words, work, NANOGPT_MIRROR=str(work / "mirror"))
    said = run([ROOT / "data/fineweb.py", "--out", work / "fineweb", "--verify"], work)
    assert "undamaged" in said
    return "made and verified"


def bench(work: Path) -> str:
    """bench.py as README calls it: an estimate for each preset, and tokens per second."""
    said = run([ROOT / "nanogpt_lib/bench.py"], work)
    assert "gpt2-1558m" in said and "tokens/s" in said
    return said.strip().splitlines()[-1]


def torture(work: Path) -> str:
    """A small part of make torture."""
    said = run([ROOT / "tests/campaigns/torture.py", "--kills", "5", "--seed", "1"], work)
    assert "bit for bit" in said
    said = run([ROOT / "tests/campaigns/fuzz.py", "--files", "200", "--lines", "40"], work)
    return said.strip().splitlines()[-1]


def lecture(work: Path) -> str:
    """The equality with the lecture's script, made now; needs --build-nanogpt."""
    if not CHECKOUT:
        return "skipped: no --build-nanogpt DIR (its recorded steps are compared by the tests)"
    said = run([ROOT / "tests/benchmarks/equal_lecture.py", CHECKOUT], work)
    return said.strip().splitlines()[-1]


CLAIMS: list[Callable[[Path], str]] = [
    recipes, training_lines, answering, lecture, torture, quickstart, bench,
]  # fmt: skip
CHECKOUT: Path | None = None


def main() -> int:
    """Try the claims one after the other."""
    global CHECKOUT
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="only the claims with this word in their name")
    parser.add_argument("--build-nanogpt", type=Path, help="a checkout of the lecture's repository")
    args = parser.parse_args()
    CHECKOUT, failed = args.build_nanogpt and args.build_nanogpt.resolve(), 0
    for claim in CLAIMS:
        if args.only not in claim.__name__:
            continue
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            write_tiny_data(Path(folder) / "tiny")
            try:
                result = claim(Path(folder))
            except AssertionError as error:
                failed, result = failed + 1, f"DOES NOT HOLD: {error}"
        print(f"{claim.__name__:<16}{time.monotonic() - begun:5.0f} s  {result}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
