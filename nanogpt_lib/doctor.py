"""Is this run normal, and what has it reached?

    python nanogpt_lib/doctor.py runs/gpt2-124m
    python nanogpt_lib/doctor.py runs/gpt2-124m --follow              redraw until the run ends
    python nanogpt_lib/doctor.py runs/gpt2-124m --follow --html run.html     in a browser, too
    python nanogpt_lib/doctor.py build-nanogpt/log/log.txt            another program's log

Reads a run's log.jsonl; the log.txt that build-nanogpt writes; what build-nanogpt or nanoGPT print,
saved to a file; llm.c's main.log. It draws the curves, prints one line per finding, and compares
runs of GPT-2 124M on FineWeb with published ones. Exit status: 0 without symptoms, 1 with symptoms
or if there is no log to read, 2 for wrong arguments.
"""

if __name__ == "__main__" and not __package__:  # run by path: import from the repository
    import sys
    from pathlib import Path

    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

import argparse
import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanogpt_lib.diagnosis import History, Symptom, diagnose
from nanogpt_lib.logbook import HELLASWAG_GPT2, series
from nanogpt_lib.picture import draw_page, draw_text
from nanogpt_lib.published import normal_loss, verdict, why_not_comparable
from nanogpt_lib.support.cli import OneLineParser, run_program
from nanogpt_lib.support.console_logs import read_any_log
from nanogpt_lib.support.datasets import read_meta
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import write_atomically
from nanogpt_lib.support.places import find_data

# What the logs of these programs do not say; nanoGPT's runs may be of anything.
ASSUMED = {
    "build-nanogpt": {"data": "fineweb_edu", "total_batch_size": 2**19},
    "llm.c": {"data": "fineweb", "total_batch_size": 2**19},
    "nanoGPT": {},
}


@dataclass
class Report:
    """What the doctor says about a log: facts, symptoms, and the log itself for the picture."""

    log: Path
    history: History
    facts: list[str]
    found: list[Symptom]

    @property
    def sick(self) -> bool:
        """Whether there is a symptom from which the run has not recovered."""
        return any(not symptom.past for symptom in self.found)

    @property
    def finished(self) -> bool:
        """Whether the run has reached its last step."""
        last = self.history.settings.get("max_steps")
        return bool(self.history.steps) and last is not None and self.history.steps[-1] >= last

    def lines(self) -> list[str]:
        """Facts, one line per symptom, and the verdict."""
        said = [*self.facts, *(symptom.line() for symptom in self.found)]
        count = sum(not symptom.past for symptom in self.found)
        words = f"{count} symptom" + "s" * (count > 1) if count else "normal, no symptoms"
        return [*said, f"{self.log}: {words}"]


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
    if settings.get("init_from", "scratch") != "scratch" or "data" not in settings:
        return None
    try:
        return read_meta(find_data(settings["data"]))["vocab_size"]
    except (UserError, OSError, TypeError):  # a log without its data
        return None


def guessed_vocabulary(records: list[dict]) -> int | None:
    """GPT-2's vocabulary size if the first loss is what random weights have with its tokens."""
    steps, losses = series(records, "train_loss")
    return 50257 if steps[:1] == [1] and 10.5 < losses[0] < 11.3 else None


def examine(log: Path, size: str) -> Report:
    """Read a log, with what is known of its run, and judge it."""
    program, records = read_any_log(log)
    settings = read_settings(log) if not program else ASSUMED[program]
    vocab_size = vocabulary_of(settings) if not program else None
    if vocab_size is None and settings.get("init_from", "scratch") == "scratch":
        vocab_size = guessed_vocabulary(records)
    history = History(records, vocab_size, settings)
    found = diagnose(records, vocab_size, settings)
    return Report(log, history, facts(history, size) if history.steps else [], found)


def symptoms(records: list[dict], vocab_size: int | None = None) -> list[str]:
    """What is abnormal in a run's log, by rules of thumb, one line each."""
    return [symptom.text for symptom in diagnose(records, vocab_size)]


def facts(history: History, size: str) -> list[str]:
    """How far a run has come, and how that compares with published ones."""
    settings, records = history.settings, history.records
    said = [f"{history.steps[-1]:,} steps, training loss {history.trend[-1]:.4f} (averaged)"]
    batch = settings.get("total_batch_size")
    batch = batch if type(batch) is int else 0
    if not Path(str(settings.get("data", ""))).name.startswith("fineweb"):
        return said
    at, values = series(records, "val_loss")
    tokens = at[-1] * batch if at else 0
    if size == "124M" and (normal := normal_loss(tokens)):
        said.append(
            f"validation loss {values[-1]:.4f} after {tokens / 1e9:.2f} billion tokens; "
            f"llm.c's run of GPT-2 124M on FineWeb had {normal:.2f}"
        )
    if reason := why_not_comparable(settings, history.vocab_size):
        said.append(f"not judged by llm.c's curve: {reason}")
    return said + verdict(records, size)


# ---- one look, or many


def screen(report: Report, plain: bool) -> str:
    """Charts and findings, as high and wide as the terminal."""
    size = shutil.get_terminal_size((100, 40))
    charts = draw_text(report.history, report.found, size.columns, size.lines, plain)
    return "\n".join([*charts, *report.lines()])


def write_page(path: Path, report: Report, seconds: int) -> None:
    """The same as a web page; it reloads itself while the run goes on."""
    text = draw_page(str(report.log), report.history, report.found, report.lines(), seconds)
    write_atomically(path, text.encode("utf-8"))


def silence(report: Report, now: float) -> str:
    """A sentence if the log has not grown for much longer than a step takes; else empty."""
    taken = report.history.column("seconds")[1]
    if len(taken) < 3 or report.finished:
        return ""
    waited = now - report.log.stat().st_mtime
    if waited < max(300, 20 * float(np.median(np.diff(taken)))):
        return ""
    return f"no new line for {waited / 60:.0f} min: an evaluation, or it hangs or has ended"


def follow(log: Path, args: argparse.Namespace, plain: bool) -> Report:
    """Redraw whenever the log has grown, until the run has made its last step."""
    seen = None
    while True:
        state, now = log.stat(), time.time()
        if seen != (state.st_size, state.st_mtime_ns) or sys.stdout.isatty():
            seen = state.st_size, state.st_mtime_ns
            report = examine(log, args.size)
            if args.html:
                write_page(args.html, report, 0 if report.finished else args.every)
            if sys.stdout.isatty():
                print("\x1b[H\x1b[2J" + screen(report, plain), flush=True)
                print(silence(report, now) or "Ctrl-C ends this view, not the run", flush=True)
            else:
                print(report.lines()[-1], flush=True)
        if report.finished:
            return report
        time.sleep(args.every)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser(prog="doctor.py", description="Is this run normal?")
    parser.add_argument("run", type=Path, help="a run's folder, its log.jsonl, or another log")
    parser.add_argument(
        "--size",
        default="124M",
        choices=list(HELLASWAG_GPT2),
        help="size of GPT-2 to compare a FineWeb run with (%(default)s)",
    )
    parser.add_argument("--follow", action="store_true", help="redraw until the run ends")
    parser.add_argument(
        "--every", type=int, default=10, help="seconds between two looks (%(default)s)"
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="also write a web page that needs nothing else"
    )
    parser.add_argument("--no-picture", action="store_true", help="only the findings")
    args = parser.parse_args(argv)
    if args.every < 1:
        parser.error("--every must be at least 1")
    return args


def main(argv: list[str] | None = None) -> int:
    """Print the findings about a log; return 1 if it has symptoms."""
    args = parse_arguments(argv)
    log = find_log(args.run)
    plain = not (sys.stdout.encoding or "").lower().startswith("utf")
    if args.follow:
        report = follow(log, args, plain)
        return int(report.sick)
    report = examine(log, args.size)
    if args.html:
        write_page(args.html, report, 0)
    picture = sys.stdout.isatty() and not args.no_picture
    print(screen(report, plain) if picture else "\n".join(report.lines()))
    return int(report.sick)


if __name__ == "__main__":
    run_program("doctor.py", main)
