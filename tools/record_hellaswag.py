"""Keep what the recorded model answers on HellaSwag: the loss of every ending, as JSON.

    python data/hellaswag.py
    python tools/record_hellaswag.py --limit 2000     → notebooks/recorded/hellaswag.json

The model reads characters, so an item here is what `hellaswag.parse_item` makes of it with the
model's alphabet; characters outside the alphabet are left out. Only numbers are kept, no text.
"""

import argparse
import json
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nanogpt_lib.hellaswag import Item
from nanogpt_lib.load import RECORDED, recorded_model
from nanogpt_lib.scoring import item_losses
from nanogpt_lib.support.cli import run_program
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import write_atomically
from nanogpt_lib.support.hellaswag_file import read_lines, read_question
from nanogpt_lib.tokenizer import CharTokenizer

ABOUT = (
    "losses in nats of the four endings of HellaSwag's first validation items (Zellers et al. "
    "2019), summed over each ending's characters, by the recorded model (notebooks/recorded/model);"
    " made by tools/record_hellaswag.py"
)


def in_characters(line: str, alphabet: CharTokenizer) -> Item:
    """One line of the file as an item of character tokens."""
    raw = read_question(line)
    if raw["source_id"].startswith("own~"):
        raise UserError("these are this project's own items; HellaSwag's are needed")

    def encode(text: str) -> list[int]:
        return alphabet.encode("".join(c for c in text if c in alphabet.ids))

    endings = [encode(" " + ending) for ending in raw["endings"]]
    return Item(encode(raw["ctx"]), endings, [len(e) - 1 for e in endings], raw["label"])


def main() -> None:
    """Read the items, score them, write the losses."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data/hellaswag/val.jsonl"))
    parser.add_argument("--limit", type=int, default=2000, help="the first N items (%(default)s)")
    parser.add_argument("--out", type=Path, default=RECORDED.parent / "hellaswag.json")
    args = parser.parse_args()
    model, alphabet = recorded_model()
    items = read_lines(args.data, lambda line: in_characters(line, alphabet), args.limit)
    losses = item_losses(model, items, progress=sys.stderr.isatty())
    rows = [
        {
            "label": item.label,
            "characters": [*map(len, item.endings)],
            "losses": [round(loss, 2) for loss in row],
        }
        for item, row in zip(items, losses.tolist(), strict=True)
    ]
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    text = f'{{"about": {json.dumps(ABOUT)}, "items": [\n{lines}\n]}}\n'
    write_atomically(args.out, text.encode())
    print(f"{len(rows)} items → {args.out}")


if __name__ == "__main__":
    run_program("record_hellaswag.py", main)
