"""log.jsonl: one JSON object per line, with a checksum, readable after a crash; and samples.txt."""

import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path

from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import write_atomically


def log_line(record: dict) -> str:
    """Format a record as a line of the log, with a CRC-32 of the text before it as last entry."""
    text = json.dumps(record)
    return f'{text[:-1]}, "crc": {zlib.crc32(text.encode())}}}\n'


def read_record(line: str) -> tuple[dict, bool]:
    """Parse a line: the record, and whether it had a checksum; ValueError if it is damaged."""
    record = json.loads(line)
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise ValueError("no step")
    crc = record.pop("crc", None)
    if crc is not None and crc != zlib.crc32(json.dumps(record).encode()):
        raise ValueError("checksum mismatch")
    return record, crc is not None


def read_log(path: str | Path) -> list[dict]:
    """All records of a log.jsonl, in order; a last line truncated by a crash is dropped.

    Raises UserError for a missing file, a damaged line elsewhere, or a line that has lost its
    checksum (a log from another program has none at all).
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such log")
    records, sealed = [], set()
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record, has_crc = read_record(line)
            sealed.add(has_crc)
            if len(sealed) > 1:
                raise ValueError("some lines have a checksum, others do not")
        except (ValueError, RecursionError) as error:
            if number == len(lines):  # the file does not end in a newline
                break
            raise UserError(f"{path} line {number}: not a log record ({error})") from error
        records.append(record)
    return records


def read_lecture_log(path: str | Path) -> list[dict]:
    """Records of build-nanogpt's log.txt (lines of `step stream value`), in our format.

    Its training line of step s is the loss of update s + 1. A last line without a newline may be
    incomplete and is dropped. Raises UserError for a missing file or a damaged line.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such log")
    names, records = {"train": "train_loss", "val": "val_loss", "hella": "hellaswag"}, []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    for number, line in enumerate(lines, 1):
        try:
            step, stream, value = line.split()
            records.append({"step": int(step) + (stream == "train"), names[stream]: float(value)})
        except (ValueError, KeyError) as error:
            raise UserError(f"{path} line {number}: not `step train|val|hella value`") from error
    return records


def external_logger(kind: str, out: str | Path, settings: dict) -> Callable[[int, dict], None]:
    """Return a function (step, values) that sends values to TensorBoard or Weights & Biases.

    For `none` it does nothing. Files go into `out`. Weights & Biases honours WANDB_MODE (`offline`
    needs no account). Raises UserError if the package is not installed.
    """
    try:
        if kind == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(out))
        elif kind == "wandb":
            import wandb

            run = wandb.init(project="nanogpt", dir=str(out), config=settings)
    except ImportError as error:
        raise UserError(f"--logger {kind}: not installed (pip install {kind})") from error

    def to_tensorboard(step: int, values: dict) -> None:
        for name, value in values.items():
            if isinstance(value, int | float):
                writer.add_scalar(name, value, step)
        writer.flush()

    def to_wandb(step: int, values: dict) -> None:
        run.log({name: v for name, v in values.items() if v is not None}, step=step)

    senders = {"tensorboard": to_tensorboard, "wandb": to_wandb}
    return senders.get(kind, lambda step, values: None)


def records_until(path: Path, step: int) -> list[dict]:
    """The records that remain valid when a run resumes at this step.

    Updates after it will be repeated, so their records are dropped. Evaluations are dropped from
    this step on, because a run saves before it evaluates.
    """
    kept = []
    for record in read_log(path) if path.exists() else []:
        last = step if "train_loss" in record else step - 1
        if record["step"] <= last:
            kept.append(record)
    return kept


class RunLog:
    """Append records to log.jsonl, one JSON object per line, flushed at once.

    A new run never overwrites a log: raises UserError if there is one. For a run that resumes at
    `resume_step`, it first drops all but `records_until`. `also` is called with (step, values) for
    every record; see `external_logger`.
    """

    def __init__(
        self,
        path: str | Path,
        resume_step: int | None = None,
        also: Callable[[int, dict], None] | None = None,
    ):
        self.path = Path(path)
        self.also = also or external_logger("none", "", {})
        self.records: list[dict] = []  # all that the file holds
        if resume_step is not None:
            self.records = records_until(self.path, resume_step)
            lines = [log_line(record) for record in self.records]
            write_atomically(self.path, "".join(lines).encode("utf-8"))
        mode = "x" if resume_step is None else "a"
        try:
            self.file = open(self.path, mode, encoding="utf-8", newline="\n")  # noqa: SIM115
        except FileExistsError as error:
            raise UserError(f"{path}: already exists; resume, or choose another --out") from error

    def write(self, step: int, **values) -> None:
        """Append one record; raises UserError if the disk is full."""
        try:
            self.file.write(log_line({"step": step, **values}))
            self.file.flush()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from error
        self.records.append({"step": step, **values})
        self.also(step, values)

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def trim_samples(path: Path, step: int) -> None:
    """Remove from samples.txt what was drawn at this step and later: it will be drawn again."""
    if not path.exists():
        return
    parts = re.split(r"(?m)^(?==== step \d+$)", path.read_text("utf-8", errors="replace"))
    kept = [p for p in parts if (at := re.match(r"=== step (\d+)", p)) and int(at[1]) < step]
    write_atomically(path, "".join(kept).encode("utf-8"))
