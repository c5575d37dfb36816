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
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from nanogpt_lib.checkpoint import load_model
from nanogpt_lib.config import OneLineParser, UserError, run_program
from nanogpt_lib.device import choose_dtype, detect_device, fast_products
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


def centred_head(model: GPT, dtype: torch.dtype) -> Tensor:
    """The output matrix (V, C) less its mean row, cast once for all items.

    It moves all logits of a position by the same amount, which no softmax can see. But GPT-2's
    logits lie near -35 and lower, and numbers near 0 lose less in bf16 than numbers near -35.
    """
    weight = model.lm_head.weight[: model.config.vocab_size].float()
    return (weight - weight.mean(dim=0)).to(dtype)


def token_losses(hidden: Tensor, head: Tensor, targets: Tensor, part: int = 4096) -> Tensor:
    """Cross entropy in nats, (N,), float32: hidden (N, C), centred head (V, C), targets (N,).

    The target's logit is a product in float32. The head's precision reaches only the logarithm of
    the sum over V, where roundings up and down cancel. One part of V at a time stays in the cache.
    """
    sums = []
    for rows in head.split(part):
        logits = F.linear(hidden.to(head.dtype), rows).float()  # (N, part)
        top = logits.amax(dim=1, keepdim=True)
        sums.append(logits.sub_(top).exp_().sum(dim=1).log() + top[:, 0])
    return torch.stack(sums).logsumexp(dim=0) - (hidden.float() * head[targets].float()).sum(dim=1)


def ending_losses(
    model: GPT, tokens: Tensor, mask: Tensor, head: Tensor | None = None, cache: list | None = None
) -> Tensor:
    """Sum of the cross entropy over each row's ending, in nats: (R,), float32.

    tokens (R, T), mask (R, T - 1) as of `pad_rows`; `head` as of `centred_head`, made here if not
    given; `cache` holds what precedes the rows. Logits are made only where the mask is 1.
    """
    head = centred_head(model, torch.float32) if head is None else head
    hidden = model.hidden_states(tokens[:, :-1], cache)  # (R, T - 1, C)
    wanted = mask.bool()
    losses = torch.zeros(mask.shape, device=mask.device)
    losses[wanted] = token_losses(hidden[wanted], head, tokens[:, 1:][wanted])
    return losses.sum(dim=1)


class PrefixCache:
    """Keys and values (B, H, P, D) of what the rows of a batch share, read once for all of them.

    The first call of `append` stores; later ones put the stored prefix before the new keys.
    """

    def __init__(self):
        self.length, self.rows = 0, None  # P; which of the B prefixes each row continues

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of new tokens, (B, H, T, D) → those the tokens may look at."""
        if self.length == 0:
            self.k, self.v, self.length = k, v, k.size(2)
            return k, v
        return torch.cat([self.k[self.rows], k], 2), torch.cat([self.v[self.rows], v], 2)


def read_prefix(model: GPT, items: list[Item], device: torch.device) -> list[PrefixCache]:
    """Read as much of the contexts as is shared by all rows; empty where that is nothing.

    Contexts of unlike length are read as far as the shortest goes. Its last token is left to the
    rows, because it predicts.
    """
    shared = min(len(item.context) for item in items) - 1
    longest = max(len(item.context) + max(map(len, item.endings)) for item in items)
    if shared < 1 or longest > model.config.block_size:  # rows cut on the left share nothing
        return []
    cache = [PrefixCache() for _ in range(model.config.n_layer)]
    prefixes = [item.context[:shared] for item in items]
    model.hidden_states(torch.tensor(prefixes, device=device), cache)
    return cache


def fill(lengths: list[int], budget: int) -> Iterator[range]:
    """Cut positions 0 … n-1 into runs whose padded size, longest × count, stays in the budget."""
    first, longest = 0, 0
    for i, length in enumerate(lengths):
        longest = max(longest, length)
        if i > first and longest * (i + 1 - first) > budget:
            yield range(first, i)
            first, longest = i, length
    yield range(first, len(lengths))


def batch_losses(model: GPT, items: list[Item], head: Tensor, budget: int) -> Tensor:
    """Loss of every ending, (items, 4): the contexts once, then the endings, shortest first."""
    cache = read_prefix(model, items, head.device)
    shared = cache[0].length if cache else 0
    rows = [row for item in items for row in item_rows(item, model.config.block_size)]
    rows = [(tokens[shared:], ending) for tokens, ending in rows]
    sums = torch.empty(len(rows))
    order = sorted(range(len(rows)), key=lambda r: len(rows[r][0]))
    for run in fill([len(rows[r][0]) for r in order], budget):
        chosen = [order[i] for i in run]
        tokens, mask = (t.to(head.device) for t in pad_rows([rows[r] for r in chosen]))
        for layer in cache:
            layer.rows = torch.tensor(chosen, device=head.device) // 4
        sums[chosen] = ending_losses(model, tokens, mask, head, cache).cpu()
    return sums.view(-1, 4)


@torch.inference_mode()
def item_losses(
    model: GPT,
    items: list[Item],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    budget: int = 4096,
    progress: bool = False,
) -> Tensor:
    """Loss of the four endings of every item, in nats, (items, 4).

    Items of like context lengths share a batch of about `budget` tokens, whatever their order.
    """
    device, was_training = torch.device(device), model.training
    model.eval()
    head, sums = centred_head(model, dtype), torch.empty(len(items), 4)
    order = sorted(range(len(items)), key=lambda i: len(items[i].context))
    bar = tqdm(total=len(items), desc="HellaSwag", disable=not progress, leave=False)
    widened = [block.mlp.c_fc.weight for block in model.transformer.h]
    fast = fast_products(device, dtype, rows=2048, gelu_after=widened)
    with bar, fast:  # around the loop: each weight once
        for run in fill([len(items[i].context) for i in order], budget):
            chosen = [order[i] for i in run]
            sums[chosen] = batch_losses(model, [items[i] for i in chosen], head, budget)
            bar.update(len(chosen))
    model.train(was_training)
    return sums


SCORES = ("acc_sum", "acc_token", "acc_byte")


def choose_endings(sums: Tensor, items: list[Item]) -> Tensor:
    """Which ending has the lowest loss, (3, items): by sum, mean per token, mean per byte."""
    lengths = torch.tensor([[len(ending) for ending in item.endings] for item in items])
    sizes = torch.tensor([item.ending_bytes for item in items])
    return torch.stack([sums, sums / lengths, sums / sizes]).argmin(dim=2)


def score_items(
    model: GPT,
    items: list[Item],
    *,
    world: World = World(),  # noqa: B008 (frozen)
    device: torch.device | str = "cpu",
    **how,
) -> dict[str, float]:
    """Accuracy on HellaSwag, three ways to choose among the endings; the lowest loss wins.

    `acc_sum`: total loss of the ending (lm-eval's acc). `acc_token`: mean per token (the lecture's
    acc_norm; GPT-2 124M 0.2955). `acc_byte`: per byte of text (lm-eval's acc_norm; 0.3114).
    Items are dealt to the processes, the numbers of right answers added up. Keywords: dtype,
    budget and progress, see `item_losses`.
    """
    ordered = sorted(items, key=lambda item: len(item.context))  # like work for every process
    mine = ordered[world.rank :: world.size]
    right = torch.zeros(3)
    if mine:
        labels = torch.tensor([item.label for item in mine])
        sums = item_losses(model, mine, device=device, **how)
        right = (choose_endings(sums, mine) == labels).sum(dim=1)
    *right, count = add_up([*map(float, right), float(len(mine))], world, torch.device(device))
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
    parser.add_argument("--batch", type=int, default=4096, help="tokens per batch")
    args = parser.parse_args(argv)
    if args.limit is not None and args.limit < 1:
        parser.error("--limit must be at least 1")
    if args.batch < 1:
        parser.error("--batch must be at least 1")
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
    how |= {"budget": args.batch, "progress": sys.stderr.isatty()}
    begun = time.perf_counter()
    scores = score_items(model.to(device), items, **how)
    seconds = time.perf_counter() - begun
    speed = f"{seconds:.1f} s, {len(items) / seconds:.1f} items/s"
    print(f"{describe_items(items)}, {args.data}, {str(how['dtype']).split('.')[1]}, {speed}")
    print(f"acc_sum   {scores['acc_sum']:.4f}   total loss of the ending (lm-eval: acc)")
    print(f"acc_token {scores['acc_token']:.4f}   mean per token (the lecture's acc_norm)")
    print(f"acc_byte  {scores['acc_byte']:.4f}   mean per byte (lm-eval: acc_norm)")


if __name__ == "__main__" and Path(sys.argv[0]).stem == "hellaswag":  # a notebook is main, too
    run_program("hellaswag.py", main)
