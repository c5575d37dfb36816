"""The curves of a run's log, and reference values of GPT-2 and GPT-3 to compare them with.

Exported from notebooks/10_results.ipynb; edit the notebook, not this file.
"""


def series(records: list[dict], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one column: train_loss, val_loss, hellaswag, lr, grad_norm, …"""
    pairs = [(r["step"], r[name]) for r in records if r.get(name) is not None]
    return [step for step, _ in pairs], [value for _, value in pairs]


def smooth(values: list[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average with bias correction: the trend in a noisy curve."""
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
REFERENCES = {
    "val_loss": {"GPT-2": FINEWEB_LOSS_GPT2},
    "hellaswag": {"GPT-2": HELLASWAG_GPT2, "GPT-3": HELLASWAG_GPT3},
}


def draw_references(axis, size: str, name: str) -> None:
    """Draw the reference lines for a size of GPT-2 into a panel of `val_loss` or `hellaswag`."""
    for (model, table), color in zip(REFERENCES[name].items(), ("tab:red", "black"), strict=False):
        if size in table:
            label = f"{model} {size}: {table[size]:.3f}"
            axis.axhline(table[size], color=color, ls="--", label=label)


def plot_run(records: list[dict], references: bool = False, size: str = "124M"):
    """Draw loss and, if scored, HellaSwag against steps; return the matplotlib figure.

    With references, the lines of GPT-2 and GPT-3 of that size (124M, 350M, 774M or 1558M) are
    added. They are for runs on FineWeb-Edu: losses on other data are not comparable.
    """
    from matplotlib.figure import Figure

    at, scores = series(records, "hellaswag")
    panels = 2 if scores else 1
    figure = Figure(figsize=(6.4 * panels, 4.0), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    steps, losses = series(records, "train_loss")
    axes[0].plot(steps, losses, color="tab:blue", alpha=0.25, lw=0.8, label="each batch")
    axes[0].plot(steps, smooth(losses), color="tab:blue", label="training, averaged")
    axes[0].plot(*series(records, "val_loss"), "o-", color="tab:orange", ms=3, label="validation")
    axes[0].set(xlabel="step", ylabel="loss (nats per token)")
    if panels == 2:
        axes[1].plot(at, scores, "o-", color="tab:green", ms=3, label="this run")
        axes[1].axhline(0.25, color="gray", ls=":", label="guessing: 0.25")
        axes[1].set(xlabel="step", ylabel="HellaSwag accuracy (per token)")
        axes[1].set_ylim(0.2, max(0.35, *scores) + 0.01)  # noise must not fill the panel
    for axis, name in zip(axes, ("val_loss", "hellaswag"), strict=False):
        if references:
            draw_references(axis, size, name)
        axis.legend(frameon=False)
    return figure
