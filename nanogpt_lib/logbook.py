"""The run log (JSON lines), its curves, and the lines of GPT-2 and GPT-3 to compare them with.

Exported from notebooks/10_results.ipynb; edit the notebook, not this file.
"""

import math
from pathlib import Path
from statistics import median

from nanogpt_lib.support.errors import UserError


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


# By size of GPT-2. HellaSwag (mean loss per token) of GPT-2 with the published weights, of GPT-3 as
# in its paper, table H.1; loss of GPT-2 on FineWeb-Edu's first shard. build-nanogpt, play.ipynb.
HELLASWAG_GPT2 = {"124M": 0.294463, "350M": 0.375224, "774M": 0.431986, "1558M": 0.488946}
HELLASWAG_GPT3 = {"124M": 0.337, "350M": 0.436, "774M": 0.510, "1558M": 0.547}
FINEWEB_LOSS_GPT2 = {"124M": 3.2924}


def draw_references(axis, size: str, name: str) -> None:
    """Add the lines of GPT-2 and GPT-3 of one size to a panel of `val_loss` or `hellaswag`."""
    if size not in HELLASWAG_GPT2:
        raise UserError(
            f"no reference lines for size {size}; there are {', '.join(HELLASWAG_GPT2)}"
        )
    tables = {"GPT-2": FINEWEB_LOSS_GPT2}
    if name == "hellaswag":
        tables = {"GPT-2": HELLASWAG_GPT2, "GPT-3": HELLASWAG_GPT3}
    for (model, table), color in zip(tables.items(), ("tab:red", "black"), strict=False):
        if size in table:
            label = f"{model} {size}: {table[size]:.3f}"
            axis.axhline(table[size], color=color, ls="--", label=label)


def plot_run(records: list[dict], references: bool = False, size: str = "124M"):
    """Draw loss and, if scored, HellaSwag against steps; return the matplotlib figure.

    With references, the lines of GPT-2 and GPT-3 of that size are added (FineWeb-Edu runs only:
    a loss on other data does not compare).
    """
    from matplotlib.figure import Figure

    panels = 2 if series(records, "hellaswag")[0] else 1
    figure = Figure(figsize=(6.4 * panels, 4.0), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    steps, losses = series(records, "train_loss")
    axes[0].plot(steps, losses, color="tab:blue", alpha=0.25, lw=0.8, label="each batch")
    axes[0].plot(steps, smooth(losses), color="tab:blue", label="training, averaged")
    axes[0].plot(*series(records, "val_loss"), "o-", color="tab:orange", ms=3, label="validation")
    axes[0].set(xlabel="step", ylabel="loss (nats per token)")
    if panels == 2:
        axes[1].plot(*series(records, "hellaswag"), "o-", color="tab:green", ms=3, label="this run")
        axes[1].axhline(0.25, color="gray", ls=":", label="guessing: 0.25")
        axes[1].set(xlabel="step", ylabel="HellaSwag accuracy (per token)")
    for axis, name in zip(axes, ("val_loss", "hellaswag"), strict=False):
        if references:
            draw_references(axis, size, name)
        axis.legend(frameon=False)
    return figure


# Validation loss of GPT-2 124M after so many tokens of FineWeb (not Edu): llm.c's run, 524,288
# tokens per step, 700 steps of warm-up to 6e-4; modded-nanogpt, records/2024-10-13_llmc/main.log.
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
    """The loss of that run after so many tokens, between its points on a log scale; else None."""
    points = list(NORMAL_LOSS.items())
    for (t0, l0), (t1, l1) in zip(points, points[1:], strict=False):
        if t0 <= tokens <= t1:
            part = math.log(tokens / t0) / math.log(t1 / t0)
            return l0 + part * (l1 - l0)
    return None


def symptoms(records: list[dict], vocab_size: int | None = None) -> list[str]:
    """What is not normal in a run's log, one line each; an empty list is a healthy run.

    Rules of thumb. With vocab_size the first loss is checked too (a model trained from scratch).
    """
    steps, losses = series(records, "train_loss")
    if not losses:
        return ["no training step yet"]
    found, trend, guess = [], smooth(losses), math.log(vocab_size or 1)
    if vocab_size and steps[0] == 1 and abs(losses[0] - guess) > 0.5:
        found.append(f"first loss {losses[0]:.2f}, a random model has ln(vocabulary) = {guess:.2f}")
    for i, loss in enumerate(losses):
        if not math.isfinite(loss) or (i > 20 and loss > trend[i - 1] + 1):
            found.append(f"step {steps[i]}: the loss jumps to {loss:.2f}")
            break
    if steps != list(range(steps[0], steps[0] + len(steps))):
        found.append(f"steps missing or repeated: {len(steps)} records up to step {steps[-1]}")
    _, validation = series(records, "val_loss")
    if len(validation) > 1 and (gap := validation[-1] - trend[-1]) > 0.3:
        found.append(f"validation loss is {gap:.2f} above training: it learns by heart")
    _, rates = series(records, "tokens_per_sec")
    early, late = rates[: len(rates) // 2], rates[-(len(rates) // 10) :]
    if len(rates) >= 20 and median(late) < 0.7 * median(early):
        found.append(f"tokens per second fell from {median(early):,.0f} to {median(late):,.0f}")
    return found


def verdict(records: list[dict], size: str = "124M") -> list[str]:
    """Where a FineWeb-Edu run stands against GPT-2 and GPT-3 of a size, one sentence per line."""
    said = []
    for name, model, table, sign in (
        ("val_loss", "GPT-2", FINEWEB_LOSS_GPT2, -1),
        ("hellaswag", "GPT-2", HELLASWAG_GPT2, 1),
        ("hellaswag", "GPT-3", HELLASWAG_GPT3, 1),
    ):
        steps, values = series(records, name)
        if not values or size not in table:
            continue
        better = [
            step for step, v in zip(steps, values, strict=True) if sign * (v - table[size]) > 0
        ]
        how = f"passed at step {better[0]}" if better else "not reached"
        if better and sign * (values[-1] - table[size]) <= 0:
            how += ", lost again"
        said.append(f"{name} {values[-1]:.4f}, {model} {size} {table[size]:.4f}: {how}")
    return said


def read_lecture_log(path: str | Path) -> list[dict]:
    """Records of a log.txt as build-nanogpt writes it (`step stream value`), in our form.

    Its training line of step s is the loss of update s + 1. Raises UserError for a missing file or
    a damaged line.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such log")
    names, records = {"train": "train_loss", "val": "val_loss", "hella": "hellaswag"}, []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            step, stream, value = line.split()
            records.append({"step": int(step) + (stream == "train"), names[stream]: float(value)})
        except (ValueError, KeyError) as error:
            raise UserError(f"{path} line {number}: not `step train|val|hella value`") from error
    return records
