"""HellaSwag: does the model find the true ending likelier than three false ones?

Exported from notebooks/09_hellaswag.ipynb; edit the notebook, not this file.

    python nanogpt_lib/hellaswag.py --checkpoint gpt2 [--data data/hellaswag/val.jsonl] [--limit N]

Shapes: four rows (endings) per item, T tokens per row, V vocabulary.
"""

if __name__ == "__main__" and not __package__:  # run by path: import from the repository
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
import sys
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from nanogpt_lib.checkpoint import load_model
from nanogpt_lib.config import OneLineParser, UserError
from nanogpt_lib.device import autocast, choose_dtype, detect_device
from nanogpt_lib.distributed import World, add_up
from nanogpt_lib.model import GPT
from nanogpt_lib.tokenizer import GPT2Tokenizer


@dataclass
class Item:
    """One question as token ids."""

    context: list[int]
    endings: list[list[int]]  # four
    ending_bytes: list[int]  # length of each ending's text in UTF-8, without the space before it
    label: int  # which ending is true
    own: bool = False  # one of ours (data/hellaswag_own.jsonl), not HellaSwag's


def parse_item(line: str, tokenizer: GPT2Tokenizer) -> Item:
    """One line of HellaSwag's JSON → Item. Raises ValueError that says what is wrong."""
    raw = json.loads(line)
    try:
        context, label, endings = raw["ctx"], int(raw["label"]), list(raw["endings"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"no usable field {error}") from error
    if len(endings) != 4 or not 0 <= label < 4:
        raise ValueError("not four endings and a label from 0 to 3")
    if not context:
        raise ValueError("ctx is empty")
    return Item(
        context=tokenizer.encode(context),
        # the space belongs to the ending: GPT-2's tokens begin with it
        endings=[tokenizer.encode(" " + ending) for ending in endings],
        ending_bytes=[max(1, len(ending.encode("utf-8", "replace"))) for ending in endings],
        label=label,
        own=str(raw.get("source_id")).startswith("own~"),
    )


def read_items(path: str | Path, tokenizer: GPT2Tokenizer, limit: int | None = None) -> list[Item]:
    """Read HellaSwag's JSON lines, tokenized once for the whole run; UserError names a bad line."""
    path, items = Path(path), []
    if not path.is_file():
        raise UserError(f"{path}: no such file; make it with python data/hellaswag.py")
    with open(path, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(islice(lines, limit), 1):
            try:
                items.append(parse_item(line, tokenizer))
            except (ValueError, TypeError, AttributeError) as error:
                raise UserError(f"{path} line {number}: not a HellaSwag item ({error})") from error
    if not items:
        raise UserError(f"{path}: holds no items")
    return items


def describe_items(items: list[Item]) -> str:
    """How many items of what: a score on our own items must never pass for HellaSwag."""
    own = sum(item.own for item in items)
    if own:
        return f"{len(items):,} items, {own:,} of them our own: not a HellaSwag score"
    return f"{len(items):,} HellaSwag items"


def item_rows(item: Item, block_size: int) -> list[tuple[list[int], int]]:
    """Four (tokens, length of the ending): context and ending, cut on the left to fit the model."""
    rows = []
    for ending in item.endings:
        ending = ending[: block_size - 1]  # keep at least one token of context
        rows.append(((item.context + ending)[-block_size:], len(ending)))
    return rows


def pad_rows(rows: list[tuple[list[int], int]]) -> tuple[Tensor, Tensor]:
    """Rows → tokens (R, T) and a mask (R, T - 1): 1 where the token predicted is of the ending.

    Padding is token 0, to the right: no earlier token sees it, and the mask leaves it out.
    """
    T = max(len(tokens) for tokens, _ in rows)
    tokens = torch.zeros(len(rows), T, dtype=torch.long)
    mask = torch.zeros(len(rows), T - 1)
    for r, (ids, ending) in enumerate(rows):
        tokens[r, : len(ids)] = torch.tensor(ids)
        mask[r, len(ids) - 1 - ending : len(ids) - 1] = 1.0
    return tokens, mask


def ending_losses(model: GPT, tokens: Tensor, mask: Tensor) -> Tensor:
    """Sum of the cross entropy over each row's ending, in nats: (R,), computed in float32.

    Logits are made only where the mask is 1: the head is a third of a small model's work.
    """
    hidden = model.hidden_states(tokens[:, :-1])  # (R, T - 1, C)
    wanted = mask.bool()
    logits = model.head(hidden[wanted])  # (tokens of all endings, V)
    losses = torch.zeros(mask.shape, device=mask.device)
    losses[wanted] = F.cross_entropy(logits, tokens[:, 1:][wanted], reduction="none")
    return losses.sum(dim=1)


SCORES = ("acc_sum", "acc_token", "acc_byte")


@torch.inference_mode()
def choose_endings(
    model: GPT, items: list[Item], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Which ending has the lowest loss, (3, items): by sum, mean per token, mean per byte."""
    rows = [row for item in items for row in item_rows(item, model.config.block_size)]
    tokens, mask = (t.to(device) for t in pad_rows(rows))
    with autocast(device, dtype):
        sums = ending_losses(model, tokens, mask).cpu().view(-1, 4)  # (items, 4)
    lengths = torch.tensor([ending for _, ending in rows]).view(-1, 4)
    sizes = torch.tensor([item.ending_bytes for item in items])
    return torch.stack([sums, sums / lengths, sums / sizes]).argmin(dim=2)


def score_items(
    model: GPT,
    items: list[Item],
    *,
    world: World = World(),  # noqa: B008 (frozen)
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    rows_per_batch: int = 32,
    progress: bool = False,
) -> dict[str, float]:
    """Accuracy on HellaSwag, three ways to choose among the endings; the lowest loss wins.

    `acc_sum`: total loss of the ending (lm-eval's acc). `acc_token`: mean per token (the lecture's
    acc_norm; GPT-2 124M 0.2955). `acc_byte`: per byte of text (lm-eval's acc_norm; 0.3114).
    Items are sorted by length, so that a batch holds little padding, and dealt to the processes.
    """
    device, was_training = torch.device(device), model.training
    model.eval()
    ordered = sorted(items, key=lambda item: len(item.context) + max(map(len, item.endings)))
    mine = ordered[world.rank :: world.size]
    per_batch = max(1, rows_per_batch // 4)
    right = torch.zeros(3, dtype=torch.float64)
    with tqdm(total=len(mine), desc="HellaSwag", disable=not progress, leave=False) as bar:
        for first in range(0, len(mine), per_batch):
            batch = mine[first : first + per_batch]
            labels = torch.tensor([item.label for item in batch])
            right += (choose_endings(model, batch, device, dtype) == labels).sum(dim=1)
            bar.update(len(batch))
    model.train(was_training)
    *right, count = add_up([*right.tolist(), float(len(mine))], world, device)
    return {name: r / count for name, r in zip(SCORES, right, strict=True)} | {"items": int(count)}


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line of this program."""
    parser = OneLineParser(prog="hellaswag.py", description="Score a model on HellaSwag.")
    parser.add_argument(
        "--checkpoint", required=True, help="a run, one checkpoint, or gpt2 … gpt2-xl"
    )
    parser.add_argument("--data", default="data/hellaswag/val.jsonl", help="JSON lines of items")
    parser.add_argument("--limit", type=int, help="only the first N items")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"]
    )
    parser.add_argument("--batch", type=int, default=32, help="rows per batch (four per item)")
    args = parser.parse_args(argv)
    if args.limit is not None and args.limit < 1:
        parser.error("--limit must be at least 1")
    return args


def main(argv: list[str] | None = None) -> None:
    """Score a checkpoint from the command line."""
    args = parse_arguments(argv)
    device = detect_device(args.device)
    model, tokenizer = load_model(args.checkpoint)
    if not isinstance(tokenizer, GPT2Tokenizer):
        raise UserError(f"{args.checkpoint}: HellaSwag needs a model with GPT-2's tokenizer")
    items = read_items(args.data, tokenizer, args.limit)
    how = {"device": device, "dtype": choose_dtype(device, args.dtype)}
    how |= {"rows_per_batch": args.batch, "progress": sys.stderr.isatty()}
    begun = time.perf_counter()
    scores = score_items(model.to(device), items, **how)
    print(f"{describe_items(items)}, {args.data}, {time.perf_counter() - begun:.1f} s")
    print(f"acc_sum   {scores['acc_sum']:.4f}   total loss of the ending (lm-eval: acc)")
    print(f"acc_token {scores['acc_token']:.4f}   mean per token (the lecture's acc_norm)")
    print(f"acc_byte  {scores['acc_byte']:.4f}   mean per byte (lm-eval: acc_norm)")


if __name__ == "__main__" and Path(sys.argv[0]).stem == "hellaswag":  # a notebook is main, too
    try:
        main()
    except UserError as error:
        sys.exit(f"hellaswag.py: {error}")
