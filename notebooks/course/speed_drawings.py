"""Drawings of chapter 05: the ladder of speed-ups, trips to memory, tiles."""

import json
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nanogpt_course.measuring import quartiles
from nanogpt_lib.support.places import ROOT

# the chapter's names of the steps, the records' names, and the lecture's milliseconds on an A100
RUNGS = {
    "fp32": ("float32", 1000),
    "TF32": ("TF32", 333),
    "bf16": ("bfloat16", 300),
    "torch.compile": ("torch.compile", 130),
    "flash attention": ("fused attention", 96),
    "padded vocabulary": ("vocabulary 50304", 93),
    "fused AdamW": ("fused AdamW", 90),
}
LECTURE = {name: ms for name, (_, ms) in RUNGS.items()}


def recorded_ladder(rows: list[dict]) -> dict[str, float | None]:
    """Milliseconds by the chapter's names; None where the machine cannot take a step."""
    found = {row["name"]: row.get("ms") for row in rows}
    return {name: found.get(theirs) for name, (theirs, _) in RUNGS.items()}


def recorded_ladders() -> dict[str, dict[str, float | None]]:
    """The ladders of other machines: a CPU and a GPU of ours, and the lecture's A100."""
    folder = ROOT / "notebooks/recorded"
    cpu = json.loads((folder / "speedups_cpu.json").read_text(encoding="utf-8"))
    gpu = json.loads((folder / "gpu/gpu.json").read_text(encoding="utf-8"))
    ladder = gpu["parts"]["ladder"]["result"]["speedups"]
    return {
        "CPU with bf16\n(2 cores, recorded)": recorded_ladder(cpu["speedups"]),
        "A100\n(the lecture)": LECTURE,
        "H200\n(recorded)": recorded_ladder(ladder),
    }


def draw_ladder(mine: Mapping[str, Sequence[float] | str], title: str = "") -> Figure:
    """Time per step as a share of each machine's fp32 step, as far as `mine` has come.

    mine: for each step the seconds of several runs, or in words why there are none.
    """
    names = list(mine)
    machines = {"your machine\n(just measured)": None, **recorded_ladders()}
    height = 1.25 + 0.34 * len(names)
    fig, axes = plt.subplots(1, 4, figsize=(9, height), sharey=True)
    for column, (ax, (machine, record)) in enumerate(zip(axes, machines.items(), strict=True)):
        for y, name in enumerate(names):
            if record is None:
                draw_mine(ax, y, mine[name], mine["fp32"])
            elif record[name] is None:
                ax.text(2, y, "not available", va="center", color="0.45", fontsize=8)
            else:
                draw_bar(ax, y, record[name], record["fp32"], f"C{column}")
        ax.set_title(machine, fontsize=9)
        ax.set(xlim=(0, 128), xticks=[0, 50, 100])
        ax.set_xticklabels(["0", "50", "100 %"], fontsize=8)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.45, -0.55)
    fig.suptitle(title or "time of a step; fp32 = 100 %", fontsize=10)
    return fig


def draw_bar(ax: Axes, y: int, value: float, first: float, colour: str) -> None:
    """One bar, its milliseconds and how many times as fast it is."""
    share = 100 * value / first
    ax.barh(y, share, color=colour, height=0.62)
    text = f"{value:,.0f} ms" if y == 0 else f"{value:,.0f} ms, ×{first / value:.1f}"
    inside = share > 64
    ax.text(share - 3 if inside else share + 3, y, text, va="center", fontsize=8,
            ha="right" if inside else "left", color="w" if inside else "k")  # fmt: skip


def draw_mine(ax: Axes, y: int, seconds: Sequence[float] | str, first: Sequence[float]) -> None:
    """The quickest run, with a bar from there to the median; or the reason why there is none."""
    if isinstance(seconds, str):
        ax.text(2, y, seconds, va="center", color="0.45", fontsize=8)
        return
    start, quick = 1e3 * min(first), 1e3 * min(seconds)
    draw_bar(ax, y, quick, start, "C0")
    middle = 1e3 * quartiles(list(seconds))[1]
    ends = [[0], [100 * (middle - quick) / start]]
    ax.errorbar([100 * quick / start], [y + 0.22], xerr=ends, color="k", lw=1.2, capsize=2)


def draw_trips() -> Figure:
    """Five kernels that each read and write memory, and one that does it all in between."""
    fig, ax = plt.subplots(figsize=(8, 2.2))
    chains = [(0, ["× 2", "+ 1", "× 3", "− 2", "× ½"]), (6.6, ["3x + ½"])]
    for left, operations in chains:
        for i, operation in enumerate(operations):
            x = left + 1.15 * i
            ax.add_patch(Rectangle((x, 1.2), 0.9, 0.55, fc="C0", ec="none"))
            ax.text(x + 0.45, 1.47, operation, color="w", ha="center", va="center", fontsize=10)
            for at, start, end in ((x + 0.2, 0.5, 1.17), (x + 0.7, 1.17, 0.5)):
                ax.annotate(
                    "", (at, end), (at, start), arrowprops=dict(arrowstyle="-|>", color="C3")
                )
    ax.add_patch(Rectangle((-0.2, 0), 8.2, 0.46, fc="0.85", ec="none"))
    ax.text(3.9, 0.23, "memory", ha="center", va="center")
    ax.text(2.75, 2.0, "one after the other: 10 trips", ha="center")
    ax.text(7.05, 2.0, "fused: 2 trips", ha="center")
    ax.set(xlim=(-0.3, 8.1), ylim=(-0.05, 2.3))
    ax.axis("off")
    return fig


def draw_tiles(columns: int, tile: int = 64, shown: int = 6) -> Figure:
    """The last tiles of a matrix with so many columns; what of the last one is used."""
    used = columns % tile or tile
    fig, ax = plt.subplots(figsize=(8, 1.0))
    for i in range(shown):
        last = i == shown - 1
        full = used if last else tile
        ax.barh(0, full, left=i * tile, color="C0", edgecolor="w", height=0.8)
        if last and used < tile:
            ax.barh(0, tile - used, left=i * tile + used, fc="w", ec="C3", hatch="///", height=0.8)
        text = f"{used} of {tile}" if last else f"{tile}"
        middle = i * tile + tile / 2
        if last and used < tile:
            ax.text((i + 1) * tile + 4, 0, text, va="center", color="C3")
        else:
            ax.text(middle, 0, text, ha="center", va="center", color="w")
    ax.set(xlim=(-2, shown * tile + 40), yticks=[], xticks=[])
    ax.set_title(f"the last {shown} tiles of {columns:,} columns", fontsize=10)
    for side in ax.spines.values():
        side.set_visible(False)
    return fig
