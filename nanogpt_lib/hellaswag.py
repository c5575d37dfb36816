"""HellaSwag: does the model find the true ending likelier than three false ones?

Exported from notebooks/09_hellaswag.ipynb; edit the notebook, not this file.

    python nanogpt_lib/hellaswag.py --checkpoint gpt2 [--data data/hellaswag/val.jsonl] [--limit N]

Shapes: four rows (endings) per item, T tokens per row, V vocabulary.
"""

if __name__ == "__main__" and not __package__:  # run by path: import from the repository
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
import sys
from dataclasses import dataclass
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
    ending_bytes: list[int]  # length of each ending's text in UTF-8
    label: int  # which ending is true


def read_items(path: str | Path, tokenizer: GPT2Tokenizer, limit: int | None = None) -> list[Item]:
    """Read HellaSwag's JSON lines (ctx, endings, label); raises UserError naming a bad line."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; make it with python data/hellaswag.py")
    items = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if limit is not None and len(items) >= limit:
                break
            try:
                raw = json.loads(line)
                # the space belongs to the ending: GPT-2's tokens begin with it
                texts = [" " + ending for ending in raw["endings"]]
                context, label = raw["ctx"], int(raw["label"])
                if len(texts) != 4 or not 0 <= label < 4:
                    raise ValueError("not four endings and a label from 0 to 3")
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path} line {number}: not a HellaSwag item ({error})") from error
            items.append(
                Item(
                    context=tokenizer.encode(context),
                    endings=[tokenizer.encode(text) for text in texts],
                    ending_bytes=[len(text.encode("utf-8")) for text in texts],
                    label=label,
                )
            )
    if not items:
        raise UserError(f"{path}: holds no items")
    return items


def item_rows(item: Item, block_size: int) -> list[tuple[list[int], int]]:
    """Four (tokens, length of the ending): context and ending, cut on the left to fit the model."""
    rows = []
    for ending in item.endings:
        ending = ending[: block_size - 1]  # keep at least one token of context
        rows.append(((item.context + ending)[-block_size:], len(ending)))
    return rows


def pad_rows(rows: list[tuple[list[int], int]]) -> tuple[Tensor, Tensor]:
    """Rows → tokens (R, T) and a mask (R, T - 1): 1 where the token predicted is of the ending."""
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


@torch.inference_mode()
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
    device = torch.device(device)
    was_training = model.training
    model.eval()
    order = sorted(
        range(len(items)), key=lambda i: sum(map(len, items[i].endings), len(items[i].context))
    )
    mine = [items[i] for i in order[world.rank :: world.size]]
    right = torch.zeros(3, dtype=torch.float64)
    per_batch = max(1, rows_per_batch // 4)
    with tqdm(total=len(mine), desc="HellaSwag", disable=not progress, leave=False) as bar:
        for first in range(0, len(mine), per_batch):
            batch = mine[first : first + per_batch]
            rows = [row for item in batch for row in item_rows(item, model.config.block_size)]
            tokens, mask = (t.to(device) for t in pad_rows(rows))
            with autocast(device, dtype):
                sums = ending_losses(model, tokens, mask).cpu().view(-1, 4)  # (items, 4)
            lengths = torch.tensor([ending for _, ending in rows]).view(-1, 4)
            sizes = torch.tensor([item.ending_bytes for item in batch])
            labels = torch.tensor([item.label for item in batch])
            for way, losses in enumerate((sums, sums / lengths, sums / sizes)):
                right[way] += (losses.argmin(dim=1) == labels).sum()
            bar.update(len(batch))
    model.train(was_training)
    *right, count = add_up([*right.tolist(), float(len(mine))], world, device)
    names = ("acc_sum", "acc_token", "acc_byte")
    return {name: r / count for name, r in zip(names, right, strict=True)} | {"items": int(count)}


def main(argv: list[str] | None = None) -> None:
    """Score a checkpoint from the command line."""
    parser = OneLineParser(prog="hellaswag.py", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--checkpoint", required=True, help="a run, one checkpoint, or gpt2 … gpt2-xl"
    )
    parser.add_argument("--data", default="data/hellaswag/val.jsonl", help="JSON lines of items")
    parser.add_argument("--limit", type=int, help="only the first N items")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--batch", type=int, default=32, help="rows per batch (four per item)")
    args = parser.parse_args(argv)
    device = detect_device(args.device)
    model, tokenizer = load_model(args.checkpoint)
    if not isinstance(tokenizer, GPT2Tokenizer):
        raise UserError(f"{args.checkpoint}: HellaSwag needs a model with GPT-2's tokenizer")
    items = read_items(args.data, tokenizer, args.limit)
    scores = score_items(
        model.to(device),
        items,
        device=device,
        dtype=choose_dtype(device, args.dtype),
        rows_per_batch=args.batch,
        progress=True,
    )
    print(f"{scores['items']:,} items of {args.data}")
    print(f"acc_sum   {scores['acc_sum']:.4f}   total loss of the ending (lm-eval: acc)")
    print(f"acc_token {scores['acc_token']:.4f}   mean per token (the lecture's acc_norm)")
    print(f"acc_byte  {scores['acc_byte']:.4f}   per byte (lm-eval: acc_norm)")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"hellaswag.py: {error}")
