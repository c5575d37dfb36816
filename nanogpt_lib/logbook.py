"""The run log (JSON lines), its curves, and the lines of GPT-2 and GPT-3 to compare them with.

Exported from notebooks/10_results.ipynb; edit the notebook, not this file.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

from nanogpt_lib.config import UserError

# HellaSwag: GPT-2 measured with the published weights (mean loss per token), GPT-3 from its paper
# (table H.1); loss of GPT-2 124M on FineWeb-Edu's first shard. The figures of build-nanogpt.
HELLASWAG_GPT2 = {"124M": 0.294463, "350M": 0.375224, "774M": 0.431986, "1558M": 0.488946}
HELLASWAG_GPT3 = {"124M": 0.337, "350M": 0.436, "774M": 0.510, "1558M": 0.547}
FINEWEB_LOSS_GPT2 = {"124M": 3.2924}


def read_log(path: str | Path) -> list[dict]:
    """All records of a log.jsonl, in order. A last line cut short by a crash is left out.

    Raises UserError for a missing file or a damaged line elsewhere.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such log")
    records = []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                raise ValueError("no step")
        except ValueError as error:
            if number == len(lines):  # the file does not end in a newline
                break
            raise UserError(f"{path} line {number}: not a log record") from error
        records.append(record)
    return records


def external_logger(kind: str, out: str | Path, settings: dict) -> Callable[[int, dict], None]:
    """A function (step, values) that also sends the numbers to TensorBoard or Weights & Biases.

    `none` gives one that does nothing. Raises UserError if the package is not installed.
    """
    try:
        if kind == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(out))

            def log(step: int, values: dict) -> None:
                for name, value in values.items():
                    if isinstance(value, int | float):
                        writer.add_scalar(name, value, step)
                writer.flush()

            return log
        if kind == "wandb":
            import wandb

            run = wandb.init(project="nanogpt", dir=str(out), config=settings, resume="allow")
            return lambda step, values: run.log(values, step=step)
    except ImportError as error:
        raise UserError(f"--logger {kind}: not installed (pip install {kind})") from error
    return lambda step, values: None


class RunLog:
    """Append records to log.jsonl, one JSON object per line, flushed at once.

    Opened for a run that resumes at `resume_step`, it first drops what came after: the training
    records of later steps, and evaluations from that step on, which the run does again.
    """

    def __init__(self, path: str | Path, resume_step: int | None = None, also=None):
        self.path = Path(path)
        self.also = also or external_logger("none", "", {})
        kept = []
        if resume_step is not None and self.path.exists():
            for record in read_log(self.path):
                last = resume_step if "train_loss" in record else resume_step - 1
                if record["step"] <= last:
                    kept.append(record)
        temporary = self.path.with_name(self.path.name + ".tmp")
        temporary.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
        os.replace(temporary, self.path)
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115

    def write(self, step: int, **values) -> None:
        """Append one record."""
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        self.file.flush()
        self.also(step, values)

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def series(records: list[dict], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one column: train_loss, val_loss, hellaswag, lr, grad_norm, …"""
    pairs = [(r["step"], r[name]) for r in records if r.get(name) is not None]
    return [step for step, _ in pairs], [value for _, value in pairs]


def smooth(values: list[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average, corrected for its start: the trend in a noisy curve."""
    average, out = 0.0, []
    for n, value in enumerate(values, 1):
        average = weight * average + (1 - weight) * value
        out.append(average / (1 - weight**n))
    return out


def plot_run(records: list[dict], references: bool = False, size: str = "124M"):
    """Draw loss and, if scored, HellaSwag against steps; return the matplotlib figure.

    With references, the lines of GPT-2 and GPT-3 of that size are added (FineWeb-Edu runs only:
    a loss on other data does not compare).
    """
    from matplotlib.figure import Figure

    hellaswag = series(records, "hellaswag")
    panels = 2 if hellaswag[0] else 1
    figure = Figure(figsize=(6.4 * panels, 4.0), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    steps, losses = series(records, "train_loss")
    axes[0].plot(steps, losses, color="tab:blue", alpha=0.25, lw=0.8)
    axes[0].plot(steps, smooth(losses), color="tab:blue", label="training")
    steps, losses = series(records, "val_loss")
    axes[0].plot(steps, losses, "o-", color="tab:orange", ms=3, label="validation")
    if references and size in FINEWEB_LOSS_GPT2:
        level = FINEWEB_LOSS_GPT2[size]
        axes[0].axhline(level, color="tab:red", ls="--", label=f"GPT-2 {size}: {level:.2f}")
    axes[0].set(xlabel="step", ylabel="loss (nats per token)")
    axes[0].legend()
    if panels == 2:
        axes[1].plot(*hellaswag, "o-", color="tab:green", ms=3, label="this run")
        axes[1].axhline(0.25, color="gray", ls=":", label="guessing: 0.25")
        if references:
            for name, table, color in (
                ("GPT-2", HELLASWAG_GPT2, "tab:red"),
                ("GPT-3", HELLASWAG_GPT3, "black"),
            ):
                label = f"{name} {size}: {table[size]:.3f}"
                axes[1].axhline(table[size], color=color, ls="--", label=label)
        axes[1].set(xlabel="step", ylabel="HellaSwag accuracy (per token)")
        axes[1].legend()
    return figure
