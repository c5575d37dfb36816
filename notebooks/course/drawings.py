"""Drawings that several chapters show: the whole of a GPT, and a state dict drawn to scale."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

# One colour for each part of a GPT, in every figure of the course (Okabe and Ito's palette)
PARTS = {
    "wte": "#0072B2",
    "wpe": "#56B4E9",
    "attention": "#E69F00",
    "MLP": "#009E73",
    "norms": "#999999",
}


def part_of(name: str) -> str:
    """The part of a GPT that a tensor of its state dict belongs to."""
    for part in ("wte", "wpe"):
        if f"{part}." in name:
            return part
    if "ln_" in name:
        return "norms"
    return "attention" if ".attn." in name else "MLP"


def box(ax: Axes, x: float, y: float, text: str, colour: str, width: float = 3.0) -> None:
    """A rounded box centred at (x, y), with white or black text."""
    patch = FancyBboxPatch(
        (x - width / 2, y - 0.3),
        width,
        0.6,
        boxstyle="round,pad=0.05",
        fc=colour,
        ec="none",
        zorder=3,
    )
    ax.add_patch(patch)
    ax.text(
        x, y, text, ha="center", va="center", color="white", fontsize=9, fontweight="bold", zorder=4
    )


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], **style) -> None:
    """An arrow between two points."""
    style = {"arrowstyle": "-|>", "color": "black", "lw": 1.2, "shrinkA": 0, "shrinkB": 0} | style
    ax.annotate("", xy=end, xytext=start, arrowprops=style)


def side_branch(ax: Axes, y: float, norm: str, text: str, colour: str) -> None:
    """A branch that leaves the residual stream at height y, and is added back above."""
    arrow(ax, (0, y), (3.0, y), arrowstyle="-")
    box(ax, 1.6, y, norm, PARTS["norms"], width=1.2)
    box(ax, 4.5, y, text, colour)
    arrow(ax, (6.05, y), (6.6, y), arrowstyle="-")
    arrow(ax, (6.6, y), (6.6, y + 0.9), arrowstyle="-")
    arrow(ax, (6.6, y + 0.9), (0.22, y + 0.9))
    ax.text(0, y + 0.9, "+", ha="center", va="center", fontsize=11,
            bbox=dict(boxstyle="circle,pad=0.15", fc="white", ec="black"))  # fmt: skip


def draw_gpt(n_layer: int = 12, n_embd: int = 768, vocab_size: int = 50257) -> Figure:
    """A GPT from tokens (bottom) to scores (top), with the names of its state dict."""
    fig, ax = plt.subplots(figsize=(7.5, 6.2))
    arrow(ax, (0, -0.4), (0, 8.6), lw=2.5, color="#444444")
    ax.text(-1.15, 3.25, f"residual stream: {n_embd} numbers per token",
            rotation=90, ha="center", va="center", fontsize=8.5, color="#444444")  # fmt: skip
    box(ax, 0, -0.9, f"wte: row of the token  ({vocab_size:,} × {n_embd})", PARTS["wte"], 5.6)
    box(ax, 5.0, -0.1, "+ wpe: row of its position", PARTS["wpe"], 4.0)
    arrow(ax, (2.95, -0.1), (0.1, -0.1))
    frame = Rectangle((-0.9, 0.75), 8.2, 5.0, fill=False, ec="#444444", ls="--", lw=1)
    ax.add_patch(frame)
    ax.text(7.15, 5.55, f"block h.i,  {n_layer} times", ha="right", va="top", fontsize=9.5)
    side_branch(ax, 1.5, "ln_1", "attn: look at other tokens", PARTS["attention"])
    side_branch(ax, 3.7, "ln_2", "mlp: each token by itself", PARTS["MLP"])
    box(ax, 0, 6.3, "ln_f", PARTS["norms"], 1.2)
    box(ax, 0, 7.4, "lm_head: a score for each token  (= wte)", PARTS["wte"], 5.6)
    ax.text(0, 8.8, "scores for the next token", ha="center", va="bottom", fontsize=9.5)
    ax.text(0, -1.45, "tokens so far", ha="center", va="top", fontsize=9.5)
    ax.set(xlim=(-3.2, 7.6), ylim=(-1.9, 9.2))
    ax.axis("off")
    return fig


def column(ax: Axes, x: float, width: float, tensors: list[tuple[str, tuple]], label: str) -> float:
    """A stack of tensors, each a rectangle whose area is its number of elements; its height."""
    y = 0.0
    for name, shape in tensors:
        size = 1
        for n in shape:
            size *= n
        height = size / width
        ax.add_patch(Rectangle((x, y), width, height, fc=PARTS[part_of(name)], ec="white", lw=0.6))
        if size > 5e5 and "wpe" not in name:
            short = name.removesuffix(".weight").split(".")[-1]
            ax.text(x + width / 2, y + height / 2, short, ha="center", va="center",
                    rotation=90 if height > 1.5 * width and width < 1000 else 0,
                    fontsize=10 if width > 1000 else 7.5, color="white")  # fmt: skip
        y += height
    ax.text(x + width / 2, -400, label, ha="center", va="top", fontsize=8)
    return y


def draw_state_dict(shapes: dict[str, tuple[int, ...]]) -> Figure:
    """The tensors of a GPT to scale: one column for the two tables, one for each block.

    `shapes` maps the names of a state dict to shapes; lm_head, which is wte, is left out.
    """
    shapes = {name: shape for name, shape in shapes.items() if name != "lm_head.weight"}
    layers = 1 + max(int(name.split(".")[2]) for name in shapes if ".h." in name)
    tables = [(n, s) for n, s in shapes.items() if ".h." not in n and "ln_f" not in n]
    fig, ax = plt.subplots(figsize=(8, 3.6))
    top = column(ax, 0, 3900, tables, "wte, wpe")
    for layer in range(layers):
        mine = [(n, s) for n, s in shapes.items() if f".h.{layer}." in n]
        column(ax, 4500 + 900 * layer, 780, mine, f"h.{layer}")
    handles = [Rectangle((0, 0), 1, 1, fc=colour) for colour in PARTS.values()]
    ax.legend(handles, list(PARTS), ncols=5, loc="upper right", frameon=False, fontsize=8)
    ax.set(xlim=(0, 4500 + 900 * layers), ylim=(-1400, top * 1.18))
    ax.axis("off")
    return fig
