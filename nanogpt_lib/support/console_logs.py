"""Logs of other training programs, as records of our log.jsonl.

Read are build-nanogpt's log.txt, what build-nanogpt and nanoGPT print (`… | tee out.txt`), and
llm.c's main.log. Programs that count updates from 0 log the loss of update s + 1 as step s; here a
training record's step is the number of updates made, as in our own logs.
"""

import re
from pathlib import Path

from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.run_log import read_lecture_log, read_log

NUMBER = r"([-+]?(?:[\d.]+(?:e[-+]?\d+)?|nan|inf))"
# A line's beginning → the program, the names of its numbers, and what to add to its step.
LINES = [
    (rf"iter (\d+): loss {NUMBER}, time {NUMBER}ms", "nanoGPT", ("train_loss", "ms"), 1),
    (rf"step (\d+): train loss {NUMBER}, val loss {NUMBER}", "nanoGPT", ("", "val_loss"), 0),
    (
        rf"step +(\d+) \| loss: {NUMBER} \| lr {NUMBER} \| norm: {NUMBER} \| dt: {NUMBER}ms",
        "build-nanogpt",
        ("train_loss", "lr", "grad_norm", "ms"),
        1,
    ),
    (
        rf"s:(\d+) trl:{NUMBER} lr:{NUMBER} norm:{NUMBER}",
        "llm.c",
        ("train_loss", "lr", "grad_norm"),
        1,
    ),
    (rf"s:(\d+) trl:{NUMBER}$", "llm.c", ("train_loss",), 1),
    (rf"s:(\d+) tel:{NUMBER}", "llm.c", ("val_loss",), 0),
    (rf"s:(\d+) eval:{NUMBER}", "llm.c", ("hellaswag",), 0),
]
LINES = [(re.compile(pattern), *rest) for pattern, *rest in LINES]


def read_line(line: str) -> tuple[str, dict] | None:
    """The program that wrote a line and the line's record; None for any other text."""
    for pattern, program, names, shift in LINES:
        if found := pattern.match(line):
            step, *values = found.groups()
            pairs = zip(names, map(float, values), strict=True)
            return program, {"step": int(step) + shift, **{n: v for n, v in pairs if n}}
    return None


def read_any_log(path: Path) -> tuple[str, list[dict]]:
    """The program that wrote a log ("" for ours), and its records.

    Raises UserError for a file in which nothing is a line of a known log.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such log")
    with open(path, encoding="utf-8", errors="replace") as file:
        first = file.readline()
    if first[:1] in ("{", ""):
        return "", read_log(path)
    if re.match(r"\d+ (train|val|hella) ", first):
        return "build-nanogpt", read_lecture_log(path)
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    found = [record for record in map(read_line, lines) if record]
    if not found:
        raise UserError(
            f"{path}: no log of train.py, nanoGPT, llm.c or build-nanogpt (`step train|val|hella "
            "value`)"
        )
    return found[0][0], [record for _, record in found]
