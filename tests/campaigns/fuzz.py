"""Damage files and command lines at random: no traceback, no hang, no wrong number accepted.

    python tests/campaigns/fuzz.py --files 10000 --lines 1000 --seed 0

A damaged file is either refused in one line, or what is read from it equals the original. A command
line either works or is refused in one line.
"""

import argparse
import contextlib
import io
import json
import os
import pickle
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests, for conftest
from conftest import ROOT, TINY, write_tiny_data
from nanogpt_lib import sample, score, train
from nanogpt_lib.arguments import parse_config
from nanogpt_lib.checkpoint import load_checkpoint, load_optimizer, optimizer_tensors
from nanogpt_lib.config import OPTIONS, as_dict, flag
from nanogpt_lib.optimizer import make_optimizer
from nanogpt_lib.shards import TokenStream
from nanogpt_lib.support.cli import run_program
from nanogpt_lib.support.datasets import read_meta, verify_shards
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.run_log import read_log

SECONDS = 60  # more than that is a hang


class Bomb:
    """Unpickled, it leaves a folder behind."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@dataclass
class Target:
    """A file to damage, how it is read, and whether what was read is right."""

    path: Path
    read: Callable
    right: Callable


# --- files --------------------------------------------------------------------------------------


def damage(content: bytes, others: list[bytes], rng: np.random.Generator) -> tuple[str, bytes]:
    """Damage content in one of several ways; returns the way's name and the bad content."""
    data, size = bytearray(content), len(content)
    start = int(rng.integers(size))
    stop = min(size, start + int(2 ** rng.uniform(0, 12)))
    kinds = "cut header last flip noise zeros remove repeat insert swap json other".split()
    kind = str(rng.choice(kinds))
    if kind == "cut":
        data = data[:start]
    elif kind == "header":
        data[: min(size, 64)] = rng.bytes(min(size, 64))
    elif kind == "last":
        data = data[:-1]
    elif kind == "flip":
        for at in rng.integers(size, size=rng.integers(1, 9)):
            data[at] ^= 1 << int(rng.integers(8))
    elif kind == "noise":
        data[start:stop] = rng.bytes(stop - start)
    elif kind == "zeros":
        data[start:stop] = bytes(stop - start)
    elif kind == "remove":
        del data[start:stop]
    elif kind == "repeat":
        data[stop:stop] = data[start:stop]
    elif kind == "insert":
        data[start:start] = rng.bytes(int(rng.integers(1, 64)))
    elif kind == "swap":  # a block from elsewhere in the same file
        data[start:stop] = data[: stop - start]
    elif kind == "json":
        data = another_value(content, rng)
    else:
        data = others[int(rng.integers(len(others)))]
    return kind, bytes(data)


def another_value(content: bytes, rng: np.random.Generator) -> bytes:
    """JSON with one value somewhere inside replaced; other files come back as noise."""
    try:
        value = json.loads(content.split(b"\n{")[0])
    except ValueError:
        return rng.bytes(100)
    strange = [None, -1, 0, 10**30, 1.5, float("nan"), "", "../../etc/passwd", [], {}, True]
    place = value
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return json.dumps(value).encode()
        key = keys[int(rng.integers(len(keys)))]
        if not isinstance(place[key], dict | list) or rng.random() < 0.2:
            place[key] = strange[int(rng.integers(len(strange)))]
            return json.dumps(value).encode()
        place = place[key]


def read_dataset(folder: Path):
    """The meta.json and every token of a dataset, verified."""
    meta = read_meta(folder)
    verify_shards(folder)
    streams = [TokenStream(folder, split) for split in ("train", "val")]
    return meta, *[stream.read(0, len(stream)).tobytes() for stream in streams]


def read_run(out: Path):
    """Name, state, weights and optimizer of the newest whole checkpoint."""
    with contextlib.redirect_stderr(io.StringIO()) as said:  # it says what it skips
        model, state, folder = load_checkpoint(out)
    assert "Traceback" not in said.getvalue()
    optimizer = make_optimizer(model, learning_rate=1e-3)
    load_optimizer(model, optimizer, folder, state)
    tensors = {**model.state_dict(), **optimizer_tensors(model, optimizer)}
    return folder.name, state, {name: t.numpy().tobytes() for name, t in tensors.items()}


def read_settings(out: Path) -> dict:
    """The settings that a resumed run would have."""
    return as_dict(parse_config(["--resume", "--out", str(out)]))


def make_targets(work: Path) -> list[Target]:
    """A dataset and a run with two checkpoints, and what is right about each of their files."""
    data, out = write_tiny_data(work / "data"), work / "run"
    flags = [*TINY, "--data", str(data), "--out", str(out), "--max-steps", "4"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert train.main(flags) == 0
    dataset, settings, log = read_dataset(data), read_settings(out), read_log(out / "log.jsonl")
    newer = out / "checkpoints/step_000004"
    runs = {newer.name: read_run(out)}
    hidden = newer.rename(work / "hidden")
    runs["step_000002"] = read_run(out)
    hidden.rename(newer)

    def one_of_both(found) -> bool:
        return found == runs[found[0]]

    def known_records(found) -> bool:
        return all(record in log for record in found)

    targets = [
        Target(data / name, lambda: read_dataset(data), dataset.__eq__)
        for name in ("train_000000.npy", "val_000000.npy", "meta.json")
    ]
    targets += [Target(path, lambda: read_run(out), one_of_both) for path in newer.iterdir()]
    targets.append(Target(out / "config.json", lambda: read_settings(out), settings.__eq__))
    targets.append(Target(out / "log.jsonl", lambda: read_log(out / "log.jsonl"), known_records))
    return targets


@contextlib.contextmanager
def time_limit():
    """A hang becomes an exception (where there is an alarm clock)."""

    def ring(number, frame):
        raise TimeoutError(f"no end after {SECONDS} s")

    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, ring)
        signal.alarm(SECONDS)
    try:
        yield
    finally:
        if hasattr(signal, "alarm"):
            signal.alarm(0)


def fuzz_files(work: Path, number: int, seed: int, say=lambda text: None) -> Counter:
    """Damage one file at a time and read it; count what became of them by file."""
    rng, counts = np.random.default_rng(seed), Counter()
    targets = make_targets(work)
    contents = [target.path.read_bytes() for target in targets]
    others = [b"", pickle.dumps(Bomb(work / "exploded")), b"[" * 100_000, b"{}", *contents]
    for trial in range(number):
        target, content = targets[trial % len(targets)], contents[trial % len(targets)]
        kind, bad = damage(content, others, rng)
        target.path.write_bytes(bad)
        try:
            with time_limit():
                found = target.read()
            assert target.right(found), "a wrong number is believed"
            older = isinstance(found, tuple) and found[0] == "step_000002"
            counts[target.path.name, "the older checkpoint read" if older else "read right"] += 1
        except UserError as error:
            assert "\n" not in str(error), f"more than one line: {error}"
            counts[target.path.name, "refused"] += 1
        except BaseException:
            print(f"trial {trial}: {kind} in {target.path.name}", flush=True)
            raise
        target.path.write_bytes(content)
        if trial % 1000 == 999:
            say(f"{trial + 1} damaged files")
    assert not (work / "exploded").exists(), "a pickle was loaded"
    return counts


# --- command lines ------------------------------------------------------------------------------

NUMBERS = (
    "0 -1 1 2 3 0.5 1e-3 1e400 nan -inf ten 0x10 999999999999 1000000000000000000000000".split()
)
SMALL = "0 -1 1 2 3 4.5 two nan".split()  # for what would really take as long as it is told to
TEXTS = [
    "",
    " ",
    "x",
    "\u4f60",
    "\udc80",
    "../..",
    "/dev/null/x",
    "-",
    "--",
    "a" * 5000,
    "FILE:",
]


def choices(program: str, data: Path, run: Path) -> dict[str, list[str]]:
    """The flags of a program and values to try for each."""
    places = [*TEXTS[:-1], str(data), str(run), str(data / "meta.json"), str(ROOT)]
    if program == "train.py":
        flags = {flag(name): NUMBERS + TEXTS[:4] for name in OPTIONS}
        texts = dict.fromkeys(("--sample-prompt", "--logger", "--dtype", "--device"), TEXTS)
        shorts = dict.fromkeys(("--max-steps", "--sample-tokens", "--n-layer"), SMALL)
        files = dict.fromkeys(("--data", "--init-from", "--hellaswag-data"), places)
        files["--out"] = places[:-1]  # nothing is written into the repository
        return {**flags, **texts, **shorts, **files, "--compile": ["off", "auto", "perhaps"]}
    flags = {"--checkpoint": places, "--device": TEXTS + ["cpu"], "--dtype": TEXTS + ["float16"]}
    if program == "sample.py":
        numbers = dict.fromkeys(("--top-k", "--top-p", "--temperature", "--seed"), NUMBERS)
        shorts = dict.fromkeys(("--num-samples", "--max-new-tokens"), SMALL)
        return {**flags, **numbers, **shorts, "--prompt": TEXTS}
    return {**flags, "--limit": SMALL, "--batch": NUMBERS, "--data": places}


def random_line(flags: dict[str, list[str]], rng: np.random.Generator) -> list[str]:
    """One to three flags with values, now and then a value too few or a word too many."""
    line = []
    for name in rng.choice(list(flags), size=rng.integers(1, 3)):
        value = str(rng.choice(np.array(flags[str(name)], dtype=object)))
        line += [f"{name}={value}"] if rng.random() < 0.5 else [str(name), value]
    if rng.random() < 0.1:
        line.pop(int(rng.integers(len(line))))
    if rng.random() < 0.1:
        line.insert(int(rng.integers(len(line) + 1)), str(rng.choice(["--nonsense", "x", "-h"])))
    return line


def outcome(program: str, main: Callable, line: list[str]) -> str:
    """Run a program in this process; return how it ended: works, refused, or else an error."""
    said, shown = io.StringIO(), io.StringIO()
    try:
        with time_limit(), contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown):
            run_program(program, lambda: main(line))
    except SystemExit as end:
        if end.code in (0, None):
            return "works"
        message = end.code if isinstance(end.code, str) else said.getvalue()
        # what was read on the way to the error (a run, a folder) is told before it, a line each
        *news, error = [text for text in message.splitlines() if text.strip()] or [""]
        fine = error and (not news or error.startswith(f"{program}: "))
        assert fine and "Traceback" not in message, f"not one line: {message!r}"
        return "refused"


def fuzz_lines(work: Path, number: int, seed: int, say=lambda text: None) -> Counter:
    """Try command lines of the three programs; count how they end."""
    rng, counts = np.random.default_rng(seed), Counter()
    data, run = write_tiny_data(work / "line_data"), work / "line_run"
    tiny = [*TINY, "--data", str(data), "--max-steps", "1"]
    assert outcome("train.py", train.main, [*tiny, "--out", str(run)]) == "works"
    mains = {"train.py": train.main, "sample.py": sample.main, "score.py": score.main}
    here = Path.cwd()
    os.chdir(work)  # an --out may be any text
    for trial in range(number):
        program = "train.py" if trial % 4 < 2 else ("sample.py", "score.py")[trial % 2]
        base = ["--checkpoint", str(run), *(["--max-new-tokens", "3"] * (program == "sample.py"))]
        if program == "train.py":
            base = [*tiny, "--out", str(work / f"out{trial}")]
        line = [*base, *random_line(choices(program, data, run), rng)]
        try:
            counts[program, outcome(program, mains[program], line)] += 1
        except BaseException:
            print(f"trial {trial}: {program} {line[len(base) :]!a}", flush=True)
            raise
        if trial % 100 == 99:
            say(f"{trial + 1} command lines")
    os.chdir(here)
    return counts


def main() -> None:
    """The campaign of `make torture`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--lines", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    args, begun = parser.parse_args(), time.monotonic()
    torch.set_num_threads(1)

    def say(text: str) -> None:
        print(f"{time.monotonic() - begun:5.0f} s  {text}", flush=True)

    with tempfile.TemporaryDirectory() as work:
        counts = fuzz_files(Path(work), args.files, args.seed, say)
        counts += fuzz_lines(Path(work), args.lines, args.seed, say)
    for (name, end), number in sorted(counts.items()):
        print(f"{number:6d} {name}: {end}")
    print("no traceback, no hang, no wrong number believed")


if __name__ == "__main__":
    main()
