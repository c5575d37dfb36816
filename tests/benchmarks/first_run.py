"""The first run, timed: what a user waits for, and what it ends with. For an idle machine.

    python tests/benchmarks/first_run.py --json first_run.json      (first: python data/pydocs.py)

Trains quickstart in a folder of its own and notes when it says what it will do, how long training
took, and the validation loss at the end. Flags after -- go to train.py: -- --minutes 10
"""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import write_record

from nanogpt_lib.support.cli import OneLineParser, run_program
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.places import ROOT
from nanogpt_lib.support.run_log import read_log


def watched(command: list[str]) -> tuple[list[tuple[float, str]], float]:
    """Run a program, printing its lines: (seconds since the start, line) of each; all seconds."""
    start, lines = time.perf_counter(), []
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
    )
    for line in process.stdout:
        lines.append((time.perf_counter() - start, line.rstrip("\n")))
        print(f"{lines[-1][0]:7.1f} s  {lines[-1][1]}", flush=True)
    if process.wait():
        raise UserError(f"train.py ended with status {process.returncode}")
    return lines, time.perf_counter() - start


def measured(out: Path, lines: list[tuple[float, str]], whole: float) -> dict:
    """What the run's log and its lines say, in seconds and nats per token."""
    told = next((at for at, line in lines if "of training, evaluations" in line), None)
    expected = re.search(
        r"validation loss (?:of about|above|below) ([\d.]+)", "\n".join(line for _, line in lines)
    )
    log = read_log(out / "log.jsonl")
    losses = {entry["step"]: entry["val_loss"] for entry in log if "val_loss" in entry}
    seconds = max(entry.get("seconds", 0.0) for entry in log)
    return {
        "told_after": told and round(told, 1),
        "expected_loss": expected and float(expected[1]),
        "loss": round(losses[max(losses)], 4),
        "losses": losses,
        "steps": max(losses),
        "training_seconds": round(seconds, 1),
        "whole_seconds": round(whole, 1),
    }


def main(argv: list[str] | None = None) -> None:
    """Run, print one line, keep the record."""
    parser = OneLineParser(prog="first_run.py", description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="add the result to this file")
    parser.add_argument("flags", nargs="*", default=(), help="flags of train.py, after --")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        program = [sys.executable, "-u", str(ROOT / "nanogpt_lib" / "train.py"), "quickstart"]
        lines, whole = watched([*program, "--out", str(out), *args.flags])
        result = {**measured(out, lines, whole), "flags": list(args.flags)}
    print(
        f"\n{result['training_seconds']} s of training in {result['whole_seconds']} s, "
        f"{result['steps']} steps, validation loss {result['loss']}"
    )
    if args.json:
        write_record(args.json, result)
        print(f"wrote {args.json}")


if __name__ == "__main__":
    run_program("first_run.py", main)
