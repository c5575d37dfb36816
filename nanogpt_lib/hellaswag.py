"""HellaSwag: is the true ending more likely to the model than three false ones?

Exported from notebooks/09_hellaswag.ipynb; edit the notebook, not this file.

Shapes: T tokens in a row (context and ending), V vocabulary.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from nanogpt_lib.model import GPT
from nanogpt_lib.support.evaluating import evaluating
from nanogpt_lib.support.hellaswag_file import read_lines, read_question
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
    raw = read_question(line)
    return Item(
        context=tokenizer.encode(raw["ctx"]),
        # the space belongs to the ending: GPT-2's tokens begin with it
        endings=[tokenizer.encode(" " + ending) for ending in raw["endings"]],
        ending_bytes=[max(1, len(text.encode("utf-8", "replace"))) for text in raw["endings"]],
        label=raw["label"],
        own=raw["source_id"].startswith("own~"),
    )


def read_items(path: str | Path, tokenizer: GPT2Tokenizer, limit: int | None = None) -> list[Item]:
    """The first `limit` items of a file of JSON lines. Raises UserError that names a bad line."""
    return read_lines(path, lambda line: parse_item(line, tokenizer), limit)


def describe_items(items: list[Item]) -> str:
    """How many items of which kind: a score on our own items must not pass for HellaSwag's."""
    own = sum(item.own for item in items)
    if own:
        return f"{len(items):,} items, {own:,} of them our own: not a HellaSwag score"
    return f"{len(items):,} HellaSwag items"


def render_item(item: Item, block_size: int) -> tuple[Tensor, Tensor]:
    """An item as four rows of context and ending: tokens (4, T) and a mask (4, T - 1).

    The mask is 1 where the token predicted belongs to the ending. Padding is token 0, on the right:
    no earlier token sees it, and the mask excludes it. A row too long for the model loses its
    beginning, but never the last token of its context.
    """
    T = min(block_size + 1, len(item.context) + max(map(len, item.endings)))
    tokens, mask = torch.zeros(4, T, dtype=torch.long), torch.zeros(4, T - 1)
    for r, ending in enumerate(item.endings):
        ending = ending[:block_size]
        row = (item.context + ending)[-block_size - 1 :]  # the last token is only predicted
        tokens[r, : len(row)] = torch.tensor(row)
        mask[r, len(row) - 1 - len(ending) : len(row) - 1] = 1.0
    return tokens, mask


def ending_losses(model: GPT, item: Item) -> Tensor:
    """Loss of each of the four endings in nats, (4,), float32: a sum over the ending's tokens."""
    tokens, mask = render_item(item, model.config.block_size)
    logits, _ = model(tokens[:, :-1])  # (4, T - 1, V)
    losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return (losses.view(mask.shape) * mask).sum(dim=1)


SCORES = ("acc_sum", "acc_token", "acc_byte")


def choose_endings(sums: Tensor, items: list[Item]) -> Tensor:
    """Which ending has the lowest loss, by each of SCORES: (3, items). `sums` (items, 4) in nats.

    By sum (lm-eval's acc), by mean per token (the lecture's acc_norm; GPT-2 124M 0.2955), and by
    mean per byte of text (lm-eval's acc_norm; 0.3114).
    """
    lengths = torch.tensor([[len(ending) for ending in item.endings] for item in items])
    sizes = torch.tensor([item.ending_bytes for item in items])
    return torch.stack([sums, sums / lengths, sums / sizes]).argmin(dim=2)


@torch.no_grad()
def score(model: GPT, items: list[Item]) -> dict[str, float]:
    """The share of items whose true ending is chosen, by each of SCORES."""
    with evaluating(model):
        sums = torch.stack([ending_losses(model, item) for item in items])
    right = choose_endings(sums, items) == torch.tensor([item.label for item in items])
    return dict(zip(SCORES, right.float().mean(dim=1).tolist(), strict=True))
