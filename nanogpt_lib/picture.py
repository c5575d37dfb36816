"""A run's curves with its symptoms marked, for the terminal and as a web page."""

import html

import numpy as np

from nanogpt_lib.diagnosis import History, Symptom
from nanogpt_lib.logbook import HELLASWAG_GPT2
from nanogpt_lib.published import band, why_not_comparable
from nanogpt_lib.support.charts import Curve, Panel, page, svg_chart, text_chart

# columns of the log drawn below the loss, if they are there
OTHERS = {
    "hellaswag": "HellaSwag, right per token",
    "grad_norm": "gradient norm",
    "tokens_per_sec": "tokens per second",
    "ms": "milliseconds per step",
    "slowest_ratio": "slowest rank: its time, as a multiple of the others'",
}
LEVELS = {f"GPT-2 124M: {HELLASWAG_GPT2['124M']:.3f}": HELLASWAG_GPT2["124M"], "guessing": 0.25}


def normal_band(history: History) -> list[Curve]:
    """llm.c's loss with what is normal around it, if the run can be compared."""
    if not history.steps or why_not_comparable(history.settings, history.vocab_size):
        return []
    batch = history.settings["total_batch_size"]
    steps = np.geomspace(26, max(history.steps[-1], 27), 200)
    points = [(step, *limits) for step in steps if (limits := band(step * batch))]
    if not points:
        return []
    xs, usual, high = zip(*points, strict=True)
    low = [2 * u - h for u, h in zip(usual, high, strict=True)]
    return [Curve("normal", xs, low, "band", high)]


def panels(history: History, found: list[Symptom]) -> list[Panel]:
    """Loss, and whatever else the log has."""
    curves = [
        *normal_band(history),
        Curve("each batch", history.steps, history.losses, "faint"),
        Curve("training, averaged", history.steps, history.trend),
        Curve("validation", *history.column("val_loss"), "dots"),
    ]
    normal = "; shaded: normal" if curves[0].kind == "band" else ""
    title = f"loss, nats per token: averaged; thin: each batch; dots: validation{normal}"
    drawn = [Panel(title, curves, marks={s.step: s.kind for s in found})]
    for name, title in OTHERS.items():
        steps, values = history.column(name)
        if len(steps):
            scored = name == "hellaswag"
            curve = Curve(title, steps, values, "dots" if scored else "line")
            drawn.append(Panel(title, [curve], LEVELS if scored else {}))
    return drawn


def draw_text(
    history: History, found: list[Symptom], width: int, height: int, plain: bool = False
) -> list[str]:
    """Charts as lines of text: the loss, and below it the gradient norm if there is room."""
    drawn = [panel for panel in panels(history, found) if panel.title != OTHERS["hellaswag"]]
    room = height - 12  # for the findings
    lines = []
    for panel, part in zip(drawn, (0.65, 0.35), strict=False):
        if (rows := int(room * part) - 2) >= 3:
            lines += text_chart(panel, width, rows, plain)
    return lines


def draw_page(
    title: str, history: History, found: list[Symptom], lines: list[str], seconds: int
) -> str:
    """The charts and the findings as one self-contained page."""
    *said, verdict = lines
    sick = any(not symptom.past for symptom in found)
    body = [f'<h1 class="{"sick" if sick else "healthy"}">{html.escape(verdict)}</h1><ul>']
    for line in said:
        kind = "sick" if line.startswith("symptom: ") else "quiet"
        body.append(f'<li class="{kind}">{html.escape(line)}</li>')
    body += ["</ul>", *map(svg_chart, panels(history, found) if history.steps else [])]
    return page(title, body, seconds)
