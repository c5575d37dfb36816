"""HellaSwag: does the model find the true ending likelier than three false ones?

Exported from notebooks/09_hellaswag.ipynb; edit the notebook, not this file.

    python nanogpt_lib/hellaswag.py --checkpoint gpt2 [--data data/hellaswag/val.jsonl] [--limit N]

Shapes: B items side by side, T tokens of each (context and four endings), C channels, V vocabulary.
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
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from nanogpt_lib.checkpoint import load_model
from nanogpt_lib.context import Context
from nanogpt_lib.device import choose_dtype, detect_device
from nanogpt_lib.distributed import all_reduce_sum
from nanogpt_lib.model import GPT
from nanogpt_lib.support.cli import OneLineParser, run_program
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.memory import keep_freed_memory
from nanogpt_lib.support.packed import fast_inference
from nanogpt_lib.support.processes import World
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


def centred_head(model: GPT) -> Tensor:
    """The output matrix (V, C) in float32, less its mean row.

    It moves all logits of a position by the same amount, which no softmax can see. But GPT-2's
    logits lie near -35 and lower, and numbers near 0 lose less in bf16 than numbers near -35.
    """
    weight = model.lm_head.weight[: model.config.vocab_size].float()
    return weight - weight.mean(dim=0)


def token_losses(
    hidden: Tensor, head: Tensor, targets: Tensor, which: Tensor, part: int = 4096
) -> Tensor:
    """Cross entropy of M predictions in nats, (M,), float32: target m is predicted by hidden state
    number which[m]. hidden (N, C), centred head (V, C), targets and which (M,).

    The target's logit and the largest of every part of V are products in float32. Autocast's
    format reaches only the rest of the sum, where roundings up and down cancel. One part at a time
    stays in the cache.
    """
    sums, exact = [], hidden.float()
    for rows in head.split(part):
        logits = F.linear(hidden, rows).float()  # (N, part)
        top, best = logits.max(dim=1)
        others = logits.sub_(top[:, None]).exp_().sum(dim=1) - 1  # the largest left out …
        largest = (exact * rows[best]).sum(dim=1)  # … and put back without rounding
        sums.append((others + (largest - top).exp()).log() + top)
    log_sums = torch.stack(sums).logsumexp(dim=0)  # (N,)
    return log_sums[which] - (exact[which] * head[targets]).sum(dim=1)


@dataclass
class Tree:
    """An item as one sequence of tokens: the trunk is read once, four branches grow from it."""

    tokens: list[int]
    position: list[int]  # of each token in its row of context and ending
    branch: list[int]  # 0 in the trunk, 1 to 4 after it
    endings: list[list[int]]  # what is predicted …
    before: list[list[int]]  # … and where in `tokens` the token stands that predicts it


def grow_tree(item: Item, block_size: int) -> Tree:
    """An item as a tree; the trunk is its context.

    A row of context and ending may exceed block_size by the one token that is only predicted. If
    one is longer, rows are cut on the left, each at another place: such an item has no trunk, and
    every branch holds its own context.
    """
    longest = len(item.context) + max(map(len, item.endings))
    trunk = item.context if longest <= block_size + 1 else []
    tree = Tree(trunk[:], list(range(len(trunk))), [0] * len(trunk), [], [])
    for number, ending in enumerate(item.endings, 1):
        ending = ending[:block_size]  # at least one token of context stays
        row = (item.context + ending)[-block_size - 1 :]
        first = len(tree.tokens)
        tree.tokens += row[len(trunk) : -1]
        tree.position += range(len(trunk), len(row) - 1)
        tree.branch += [number] * (len(tree.tokens) - first)
        tree.endings.append(ending)
        tree.before.append([len(trunk) - 1, *range(first, len(tree.tokens))][-len(ending) :])
    return tree


def side_by_side(rows: list[list[int]], padding: int = 0) -> Tensor:
    """Rows of unlike length → (B, T), filled up on the right."""
    return pad_sequence([*map(torch.tensor, rows)], batch_first=True, padding_value=padding)


def visibility(branch: Tensor) -> Tensor:
    """Who sees whom, (B, 1, T, T): the trunk and one's own branch, up to oneself. branch (B, T)."""
    query, key = branch[:, :, None], branch[:, None, :]
    return ((key == 0) | (key == query)).tril()[:, None]


def tree_losses(model: GPT, trees: list[Tree], head: Tensor) -> Tensor:
    """Loss of every ending, in nats, (items, 4), float32: all trees in one forward pass.

    `head` as of `centred_head`. Logits are made once for every token that predicts something.
    """
    device, T = head.device, max(len(tree.tokens) for tree in trees)
    tokens = side_by_side([tree.tokens for tree in trees]).to(device)  # (B, T)
    position = side_by_side([tree.position for tree in trees]).to(device)
    branch = side_by_side([tree.branch for tree in trees], padding=5).to(device)
    hidden = model.transformer(tokens, Context(position, visibility(branch)))
    endings = [ending for tree in trees for ending in tree.endings]
    targets = torch.tensor([token for ending in endings for token in ending])  # (M,)
    before = [b * T + t for b, tree in enumerate(trees) for ts in tree.before for t in ts]
    places, which = torch.tensor(before).unique(return_inverse=True)  # (N,), (M,)
    hidden = hidden.flatten(0, 1)[places.to(device)]  # (N, C)
    losses = token_losses(hidden, head, targets.to(device), which.to(device)).cpu()
    return torch.stack([part.sum() for part in losses.split([*map(len, endings)])]).view(-1, 4)


def fill(lengths: list[int], budget: int) -> Iterator[range]:
    """Cut positions 0 … n-1 into runs whose padded size, longest × count, stays in the budget;
    a length over the budget goes alone."""
    first, longest = 0, 0
    for i, length in enumerate(lengths):
        longest = max(longest, length)
        if i > first and longest * (i + 1 - first) > budget:
            yield range(first, i)
            first, longest = i, length
    yield range(first, len(lengths))


@torch.inference_mode()
def item_losses(
    model: GPT,
    items: list[Item],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    budget: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Loss of the four endings of every item, in nats, (items, 4).

    Items of like length share a batch of about `budget` tokens, whatever their order; by default
    1,024 on a CPU, so that a batch stays in its cache, else 16,384 (not measured yet).
    """
    device, was_training = torch.device(device), model.training
    budget = budget or (1024 if device.type == "cpu" else 16384)
    model.eval()
    head, sums = centred_head(model), torch.empty(len(items), 4)
    trees = [grow_tree(item, model.config.block_size) for item in items]
    order = sorted(range(len(items)), key=lambda i: len(trees[i].tokens))
    bar = tqdm(total=len(items), desc="HellaSwag", disable=not progress, leave=False)
    fast = fast_inference(model, device, dtype, rows=budget)
    with bar, fast:  # around the loop: each weight once
        for run in fill([len(trees[i].tokens) for i in order], budget):
            chosen = [order[i] for i in run]
            sums[chosen] = tree_losses(model, [trees[i] for i in chosen], head)
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
    # neighbours in length are dealt to different processes: like shares of work
    ordered = sorted(items, key=lambda item: len(item.context) + sum(map(len, item.endings)))
    mine = ordered[world.rank :: world.size]
    right = torch.zeros(3)
    if mine:
        labels = torch.tensor([item.label for item in mine])
        sums = item_losses(model, mine, device=device, **how)
        right = (choose_endings(sums, mine) == labels).sum(dim=1)
    *right, count = all_reduce_sum(
        [*map(float, right), float(len(mine))], world, torch.device(device)
    )
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
    parser.add_argument("--batch", type=int, help="tokens per batch (1,024 on a CPU, 16,384 else)")
    args = parser.parse_args(argv)
    if args.limit is not None and args.limit < 1:
        parser.error("--limit must be at least 1")
    if args.batch is not None and args.batch < 1:
        parser.error("--batch must be at least 1")
    return args


def main(argv: list[str] | None = None) -> None:
    """Score a checkpoint from the command line."""
    args = parse_arguments(argv)
    device = detect_device(args.device)
    if device.type == "cpu":
        keep_freed_memory()
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
