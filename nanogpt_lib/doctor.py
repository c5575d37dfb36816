"""Is this run normal, and what has it reached?

    python nanogpt_lib/doctor.py runs/gpt2-124m
    python nanogpt_lib/doctor.py build-nanogpt/log/log.txt

Reads a run's log.jsonl, or the log.txt that build-nanogpt writes, and prints one line per finding.
Runs on FineWeb are compared with published ones. Exit status: 0 without symptoms, 1 with symptoms
or if there is no log to read, 2 for wrong arguments.
"""

if __name__ == "__main__" and not __package__:  # run by path: import from the repository
    import sys
    from pathlib import Path

    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

import argparse
import json
import math
from pathlib import Path
from statistics import median

from nanogpt_lib.logbook import HELLASWAG_GPT2, REFERENCES, series, smooth
from nanogpt_lib.support.cli import OneLineParser, run_program
from nanogpt_lib.support.datasets import read_meta
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.places import find_data
from nanogpt_lib.support.run_log import read_lecture_log, read_log

# Tokens of FineWeb (not Edu) seen → validation loss of GPT-2 124M: llm.c's run, 524,288 tokens per
# step, 700 steps of warm-up to 6e-4; modded-nanogpt, records/2024-10-13_llmc/main.log.
NORMAL_LOSS = {
    131_072_000: 6.1710,
    262_144_000: 5.3743,
    393_216_000: 4.7097,
    524_288_000: 4.3170,
    1_048_576_000: 3.8585,
    2_621_440_000: 3.5535,
    5_242_880_000: 3.3924,
    10_255_073_280: 3.2722,
}


def normal_loss(tokens: float) -> float | None:
    """That run's loss after `tokens` tokens, interpolated on a log scale; None out of range."""
    points = list(NORMAL_LOSS.items())
    for (t0, l0), (t1, l1) in zip(points, points[1:], strict=False):
        if t0 <= tokens <= t1:
            part = math.log(tokens / t0) / math.log(t1 / t0)
            return l0 + part * (l1 - l0)
    return None


def symptoms(records: list[dict], vocab_size: int | None = None) -> list[str]:
    """What is abnormal in a run's log, by rules of thumb, one line each; empty for a healthy run.

    With vocab_size, two more checks for models trained from scratch: the first loss, and whether
    the model learns more than token frequencies.
    """
    steps, losses = series(records, "train_loss")
    if not losses:
        return ["no training step yet"]
    found, trend = [], smooth(losses)
    if vocab_size:
        found += symptoms_from_scratch(steps, losses, trend, math.log(vocab_size))
    for i, loss in enumerate(losses):
        if not math.isfinite(loss) or (i > 20 and loss > trend[i - 1] + 1):
            found.append(f"step {steps[i]}: the loss jumps to {loss:.2f}")
            break
    if steps != list(range(steps[0], steps[0] + len(steps))):
        found.append(f"steps missing or repeated: {len(steps)} records up to step {steps[-1]}")
    at, validation = series(records, "val_loss")
    if len(validation) > 1:
        then = dict(zip(steps, trend, strict=True)).get(at[-1], trend[-1])  # training, at that step
        if (gap := validation[-1] - then) > 0.3:
            found.append(f"validation loss is {gap:.2f} above training loss: overfitting")
    _, rates = series(records, "tokens_per_sec")
    early, late = rates[: len(rates) // 2], rates[-(len(rates) // 10) :]
    if len(rates) >= 20 and median(late) < 0.7 * median(early):
        found.append(f"tokens per second fell from {median(early):,.0f} to {median(late):,.0f}")
    return found


def symptoms_from_scratch(
    steps: list[int], losses: list[float], trend: list[float], guess: float
) -> list[str]:
    """Symptoms of a model that started from random weights; `guess` is ln(vocabulary), in nats.

    A model that has learned only token frequencies stays at about 0.7 of `guess`.
    """
    found, half = [], len(trend) // 2
    if steps[0] == 1 and abs(losses[0] - guess) > 0.5:
        found.append(f"first loss {losses[0]:.2f}; a random model has ln(vocabulary) = {guess:.2f}")
    if len(trend) >= 500 and trend[-1] > 0.6 * guess and trend[half] - trend[-1] < 0.1:
        found.append(
            f"the loss stays at {trend[-1]:.2f} from step {steps[half]} on: "
            f"little more than token frequencies was learned"
        )
    return found


def verdict(records: list[dict], size: str = "124M") -> list[str]:
    """How a FineWeb-Edu run compares with GPT-2 and GPT-3 of a size, one line per comparison."""
    said = []
    for name, models in REFERENCES.items():
        sign = -1 if name == "val_loss" else 1
        steps, values = series(records, name)
        for model, table in models.items():
            if not values or size not in table:
                continue
            better = [sign * (value - table[size]) > 0 for value in values]
            how = f"passed at step {steps[better.index(True)]}" if any(better) else "not reached"
            if any(better) and not better[-1]:
                how += ", lost again"
            said.append(f"{name} {values[-1]:.4f}, {model} {size} {table[size]:.4f}: {how}")
    return said


def find_log(source: Path) -> Path:
    """The log of a run's folder or of build-nanogpt's `log` folder, or the file itself."""
    if source.is_file():
        return source
    for name in ("log.jsonl", "log.txt"):
        if (source / name).is_file():
            return source / name
    what = "has no log.jsonl or log.txt" if source.is_dir() else "no such run or log"
    raise UserError(f"{source}: {what}")


def read_settings(log: Path) -> dict:
    """The config.json next to a log; an empty dict if it is missing or unreadable."""
    try:
        settings = json.loads((log.parent / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}


def vocabulary_of(settings: dict) -> int | None:
    """The vocabulary size of the run's data; None if unknown or if not trained from scratch."""
    if settings.get("init_from") or "data" not in settings:
        return None
    try:
        return read_meta(find_data(settings["data"]))["vocab_size"]
    except (UserError, OSError, TypeError):  # a log without its data
        return None


def examine(log: Path, size: str) -> tuple[list[str], list[str]]:
    """Findings about a log, and its symptoms; one line each."""
    with open(log, encoding="utf-8", errors="replace") as file:
        ours = file.read(1) in ("{", "")
    settings = read_settings(log) if ours else {"data": "fineweb", "total_batch_size": 2**19}
    records = read_log(log) if ours else read_lecture_log(log)
    found = symptoms(records, vocabulary_of(settings) if ours else 50257)
    steps, losses = series(records, "train_loss")
    if not losses:
        return [], found
    said = [f"{steps[-1]:,} steps, training loss {smooth(losses)[-1]:.4f} (averaged)"]
    if Path(str(settings.get("data", ""))).name.startswith("fineweb"):
        at, values = series(records, "val_loss")
        batch = settings.get("total_batch_size")
        tokens = at[-1] * batch if at and type(batch) is int else 0
        if size == "124M" and (normal := normal_loss(tokens)):
            said.append(
                f"validation loss {values[-1]:.4f} after {tokens / 1e9:.2f} billion tokens; "
                f"llm.c's run of GPT-2 124M on FineWeb had {normal:.2f}"
            )
        said += verdict(records, size)
    return said, found


def main(argv: list[str] | None = None) -> int:
    """Print the findings about a log; return 1 if it has symptoms."""
    parser = OneLineParser(prog="doctor.py", description="Is this run normal?")
    parser.add_argument("run", type=Path, help="a run's folder, its log.jsonl, or a log.txt")
    parser.add_argument(
        "--size",
        default="124M",
        choices=list(HELLASWAG_GPT2),
        help="size of GPT-2 to compare a FineWeb run with (%(default)s)",
    )
    args: argparse.Namespace = parser.parse_args(argv)
    log = find_log(args.run)
    said, found = examine(log, args.size)
    for line in said:
        print(line)
    for line in found:
        print(f"symptom: {line}")
    count = f"{len(found)} symptom" + "s" * (len(found) > 1) if found else "normal, no symptoms"
    print(f"{log}: {count}")
    return int(bool(found))


if __name__ == "__main__":
    run_program("doctor.py", main)
