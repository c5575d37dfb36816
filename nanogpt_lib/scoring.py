"""Fast HellaSwag: the shared context is read once, and logits are computed only where needed.

`hellaswag.ending_losses` is the plain definition; `item_losses` returns the same numbers. An item
becomes one sequence: the context is the trunk, and the four endings are branches that follow it. A
mask keeps the branches from attending to each other, and the positions of every branch continue
those of the trunk.

Shapes: B items per batch, T tokens per item, C channels, V vocabulary, N hidden states that are
used, M predictions.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from nanogpt_lib.context import Context
from nanogpt_lib.distributed import all_reduce_sum
from nanogpt_lib.hellaswag import SCORES, Item, choose_endings
from nanogpt_lib.model import GPT
from nanogpt_lib.sampling import next_token_logits
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.evaluating import evaluating, join_evaluation
from nanogpt_lib.support.packed import fast_inference
from nanogpt_lib.support.processes import World
from nanogpt_lib.tokenizer import GPT2Tokenizer


def require_gpt2_tokens(tokenizer: object, source: str) -> None:
    """Raise UserError unless the model uses GPT-2's tokenizer, as the items do.

    `tokenizer` is what `load_model` returned for `source`: None if unknown.
    """
    if not isinstance(tokenizer, GPT2Tokenizer):
        raise UserError(f"{source}: HellaSwag needs a model with GPT-2's tokenizer")


@dataclass
class Tree:
    """An item as one sequence of tokens: the context is its trunk, each ending a branch."""

    tokens: list[int]
    position: list[int]  # each token's position in its own row of context and ending
    branch: list[int]  # 0 in the trunk, 1 to 4 in the branches
    endings: list[list[int]]  # the tokens to predict …
    predictors: list[list[int]]  # … and, for each, the index in `tokens` of the one before it


def build_tree(item: Item, block_size: int) -> Tree:
    """Build an item's tree.

    A row of context and ending may exceed block_size by one token, the last, which is predicted but
    never read. Longer rows are cropped on the left, each at a different place, and no longer share
    a context: the tree then has no trunk, and every branch includes its own context.
    """
    longest = len(item.context) + max(map(len, item.endings))
    trunk = item.context if longest <= block_size + 1 else []
    tree = Tree(trunk[:], list(range(len(trunk))), [0] * len(trunk), [], [])
    for number, ending in enumerate(item.endings, 1):
        ending = ending[:block_size]  # leaves at least one token of context
        row = (item.context + ending)[-block_size - 1 :]
        first = len(tree.tokens)
        tree.tokens += row[len(trunk) : -1]
        tree.position += range(len(trunk), len(row) - 1)
        tree.branch += [number] * (len(tree.tokens) - first)
        tree.endings.append(ending)
        tree.predictors.append([len(trunk) - 1, *range(first, len(tree.tokens))][-len(ending) :])
    return tree


def pad(rows: list[list[int]]) -> Tensor:
    """Rows of different lengths → (B, T), padded with 0 on the right."""
    return pad_sequence([*map(torch.tensor, rows)], batch_first=True)


def visibility(branch: Tensor) -> Tensor:
    """branch (B, T) → attention mask (B, 1, T, T): the trunk and one's own branch, causal."""
    query, key = branch[:, :, None], branch[:, None, :]
    return ((key == 0) | (key == query)).tril()[:, None]


class CentredHead(nn.Module):
    """The output matrix (V, C) in float32 minus its mean row, split into parts that fit a cache.

    Subtracting the mean row shifts all logits of a position equally, so the softmax is unchanged.
    But GPT-2's logits are near -35, and bfloat16 rounds numbers near 0 less.
    """

    def __init__(self, model: GPT, part: int = 4096):
        super().__init__()
        weight = model.lm_head.weight.detach()[: model.config.vocab_size].float()
        self.weight = weight - weight.mean(dim=0)
        self.parts = nn.ModuleList()
        for rows in self.weight.split(part):  # as layers, so that their weights can be packed
            linear = nn.Linear(rows.size(1), rows.size(0), bias=False, device="meta")
            linear.weight = nn.Parameter(rows, requires_grad=False)
            self.parts.append(linear)

    def forward(self, hidden: Tensor, targets: Tensor, source: Tensor) -> Tensor:
        """Cross entropy of M predictions in nats, (M,), float32.

        hidden (N, C); targets (M,); source (M,), the row of `hidden` that predicts each target. The
        target's logit and the largest one of every part are computed in float32. Autocast's dtype
        affects only the rest of the sum, where rounding errors largely cancel.
        """
        sums, exact = [], hidden.float()
        for linear in self.parts:
            logits = linear(hidden).float()  # (N, part)
            top, best = logits.max(dim=1)
            others = logits.sub_(top[:, None]).exp_().sum(dim=1) - 1  # all but the largest …
            largest = (exact * linear.weight[best]).sum(dim=1)  # … which is added without rounding
            sums.append((others + (largest - top).exp()).log() + top)
        log_sums = torch.stack(sums).logsumexp(dim=0)  # (N,)
        return log_sums[source] - (exact[source] * self.weight[targets]).sum(dim=1)


class OwnHead(nn.Module):
    """The model's own head, for one that is more than a matrix; the interface of CentredHead."""

    def __init__(self, model: GPT):
        super().__init__()
        self.model, self.weight = model, model.lm_head.weight

    def forward(self, hidden: Tensor, targets: Tensor, source: Tensor) -> Tensor:
        """Cross entropy of M predictions in nats, (M,), float32."""
        logits = next_token_logits(self.model, hidden)  # (N, V)
        return logits.logsumexp(dim=1)[source] - logits[source, targets]


def tree_losses(model: GPT, trees: list[Tree], head: CentredHead | OwnHead) -> Tensor:
    """Loss of every ending in nats, (items, 4), float32, from one forward pass for all trees.

    Padding is on the right, where no token of the item attends to it.
    """
    device, T = head.weight.device, max(len(tree.tokens) for tree in trees)
    tokens = pad([tree.tokens for tree in trees]).to(device)  # (B, T)
    position = pad([tree.position for tree in trees]).to(device)
    branch = pad([tree.branch for tree in trees]).to(device)
    hidden = model.transformer(tokens, Context(position, visibility(branch)))
    endings = [ending for tree in trees for ending in tree.endings]
    targets = torch.tensor([token for ending in endings for token in ending])  # (M,)
    used = [b * T + t for b, tree in enumerate(trees) for ts in tree.predictors for t in ts]
    used, source = torch.tensor(used).unique(return_inverse=True)  # (N,), (M,)
    hidden = hidden.flatten(0, 1)[used.to(device)]  # (N, C)
    losses = head(hidden, targets.to(device), source.to(device)).cpu()
    return torch.stack([part.sum() for part in losses.split([*map(len, endings)])]).view(-1, 4)


def batches_within_budget(lengths: list[int], budget: int) -> Iterator[range]:
    """Split indices 0 … n-1 into ranges whose padded size, longest × count, is at most `budget`.

    A single length above the budget gets a range of its own.
    """
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
    """Loss of the four endings of every item in nats, (items, 4), float32.

    Items are sorted by length and batched to at most about `budget` tokens; by default 1,024 on a
    CPU, so that a batch stays in its cache, else 16,384 (not yet tuned by measurement).
    """
    device = torch.device(device)
    budget = budget or (1024 if device.type == "cpu" else 16384)
    head = (CentredHead if type(model.lm_head) is nn.Linear else OwnHead)(model)
    sums = torch.empty(len(items), 4)
    trees = [build_tree(item, model.config.block_size) for item in items]
    order = sorted(range(len(items)), key=lambda i: len(trees[i].tokens))
    lengths = [len(trees[i].tokens) for i in order]
    bar = tqdm(total=len(items), desc="HellaSwag", disable=not progress, leave=False)
    both = nn.ModuleList([model, head])
    fast = fast_inference(both, device, dtype, rows=budget)
    with bar, evaluating(both), fast:  # outside the loop, so that each weight is cast once
        for run in batches_within_budget(lengths, budget):
            chosen = [order[i] for i in run]
            sums[chosen] = tree_losses(model, [trees[i] for i in chosen], head)
            bar.update(len(chosen))
    return sums


def score_items(
    model: GPT,
    items: list[Item],
    *,
    world: World = World(),  # noqa: B008 (frozen)
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    budget: int | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """HellaSwag's three scores (hellaswag.SCORES) and the number of items.

    Items are distributed over the processes and their counts of right answers summed, so every
    process returns the same scores, whatever the world size. `budget`, `progress`: see item_losses.
    """
    # items of similar length go to different processes, to balance the work
    ordered = sorted(items, key=lambda item: len(item.context) + sum(map(len, item.endings)))
    mine = ordered[world.rank :: world.size]
    right = torch.zeros(3)
    if mine:
        labels = torch.tensor([item.label for item in mine])
        options = {"device": device, "dtype": dtype, "budget": budget, "progress": progress}
        right = (choose_endings(item_losses(model, mine, **options), mine) == labels).sum(dim=1)
    else:
        join_evaluation(model)
    counts = [*map(float, right), float(len(mine))]
    *right, count = all_reduce_sum(counts, world, torch.device(device))
    return {name: r / count for name, r in zip(SCORES, right, strict=True)} | {"items": int(count)}
