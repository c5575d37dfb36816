"""A model card: what a trained model is, what it was trained on, and how well it does."""

import json
import math
from pathlib import Path

from nanogpt_lib.logbook import series
from nanogpt_lib.support.datasets import read_meta
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import read_sealed
from nanogpt_lib.support.places import find_data
from nanogpt_lib.support.run_log import read_log

# By the beginning of a dataset's name: its licence, as its publisher states it.
DATA_LICENCES = {
    "fineweb": "ODC-By 1.0, and Common Crawl's terms of use",
    "openwebtext": "CC0 for the collection; the texts belong to their authors",
    "shakespeare": "public domain",
    "pydocs": "PSF License 2.0, part of it 0BSD, as Python itself",
}
LIMITS = """\
A base model: it continues text. It follows no instructions and has had no safety training; its text
can be false, offensive or private. Check what it writes before anyone relies on it."""


def standard_error(share: float, items: int) -> float:
    """Standard error of a share of `items` items: the half width of a 68 % interval."""
    return math.sqrt(share * (1 - share) / items)


def read_scores(run: Path) -> dict:
    """What score.py --json wrote into the run's folder; empty if it did not."""
    path = run / "hellaswag.json"
    if not path.exists():
        return {}
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
        float(scores["acc_token"]), float(scores["acc_byte"]), int(scores["items"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not written by score.py --json ({error})") from error
    return scores


def table(rows: list[tuple[str, str]]) -> str:
    """Two columns in Markdown."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def data_rows(settings: dict) -> list[tuple[str, str]]:
    """Name, source and licence of the training data, as far as they are known."""
    try:
        meta = read_meta(find_data(settings["data"]))
    except (UserError, OSError, KeyError, TypeError):  # no longer on this machine
        meta = {}
    name = meta.get("name") or Path(str(settings.get("data", "unknown"))).name
    known = (words for start, words in DATA_LICENCES.items() if name.startswith(start))
    rows = [("data", name), ("made from", meta.get("source", "not recorded"))]
    return [*rows, ("licence of the data", next(known, "unknown: look it up before you publish"))]


def result_rows(run: Path, settings: dict) -> list[tuple[str, str]]:
    """Steps, tokens, losses and HellaSwag with error bars."""
    records = read_log(run / "log.jsonl")
    steps, losses = series(records, "train_loss")
    rows = []
    if steps:
        tokens = steps[-1] * settings.get("total_batch_size", 0)
        rows += [("steps", f"{steps[-1]:,}"), ("training tokens", f"{tokens:,}")]
        last = losses[-100:]
        rows.append(
            ("training loss", f"{sum(last) / len(last):.4f} (mean of the last {len(last)})")
        )
    at, values = series(records, "val_loss")
    if values:
        rows.append(("validation loss", f"{values[-1]:.4f} nats per token (step {at[-1]:,})"))
    scores = read_scores(run)
    for name, words in (("acc_token", "per token"), ("acc_byte", "per byte, lm-eval's acc_norm")):
        if scores:
            error = standard_error(scores[name], scores["items"])
            what = "HellaSwag" if not scores.get("own") else "our own items, not HellaSwag"
            value = f"{scores[name]:.4f} ± {error:.4f} ({scores['items']:,} items, {words})"
            rows.append((what, value))
    return rows


def model_card(run: str | Path, name: str, parameters: int, license: str = "unknown") -> str:
    """README.md for a model that was trained in the folder `run`, for the Hugging Face hub.

    `license` is yours to choose: an identifier such as mit, see the hub's list. Error bars are one
    standard error. Raises UserError if the run's settings or log cannot be read.
    """
    run = Path(run)
    settings = read_sealed(run / "config.json")
    shape = [f"{settings.get(k)} {words}" for k, words in (
        ("n_layer", "layers"), ("n_head", "heads"), ("n_embd", "channels"),
        ("block_size", "tokens of context"),
    )]  # fmt: skip
    rows = [
        ("parameters", f"{parameters:,}"),
        ("shape", ", ".join(shape)),
        *data_rows(settings),
        *result_rows(run, settings),
    ]
    recipe = {k: settings.get(k) for k in (
        "optimizer", "learning_rate", "min_lr", "warmup_steps", "weight_decay", "total_batch_size",
        "seed", "dtype",
    )}  # fmt: skip
    chosen = "" if license != "unknown" else "\nNo licence was chosen for these weights yet.\n"
    return f"""\
---
license: {license}
language: en
library_name: transformers
pipeline_tag: text-generation
---

# {name}

A GPT-2 trained from {settings.get("init_from", "scratch")} with nanogpt_lib.
{chosen}
{table(rows)}

± is one standard error. Trained with {", ".join(f"{k} {v}" for k, v in recipe.items())}.

{LIMITS}

```python
from transformers import pipeline

print(pipeline("text-generation", model="{name}")("Hello, I'm a language model,"))
```
"""
