"""From a trained model to one with more tokens, or with small trainable additions (LoRA).

Exported from notebooks/11_finetuning.ipynb; edit the notebook, not this file.
"""

import math
from dataclasses import replace

import torch
import torch.nn as nn
from torch import Tensor

from nanogpt_lib.model import GPT, load_weights
from nanogpt_lib.tokenizer import CharTokenizer, GPT2Tokenizer


def kept_rows(
    old: GPT2Tokenizer | CharTokenizer, new: GPT2Tokenizer | CharTokenizer
) -> list[int] | None:
    """For each token of `new` its id in `old`, or -1 if it is new; None if `old` has others."""
    if type(old) is not type(new):
        return None
    if isinstance(old, CharTokenizer):
        rows = [old.ids.get(character, -1) for character in new.characters]
    else:
        same = new.added[: len(old.added)] == old.added
        rows = [i if same and i < old.vocab_size else -1 for i in range(new.vocab_size)]
    return rows if len(set(rows) - {-1}) == old.vocab_size else None


@torch.no_grad()
def extend_vocabulary(model: GPT, rows: list[int]) -> GPT:
    """A GPT with a token for each of `rows`: its row of wte is that row of the model's.

    For -1 it is the mean of all rows, so that a new token takes little of the others' probability.
    """
    known = model.transformer.wte.weight[: model.config.vocab_size]
    table = torch.cat([known, known.mean(dim=0, keepdim=True)])[rows]  # index -1 is the mean
    larger = GPT(replace(model.config, vocab_size=len(rows)))
    tables = dict.fromkeys(("transformer.wte.weight", "lm_head.weight"), table)
    load_weights(larger, {**model.state_dict(), **tables}, vocab_size=len(rows))
    return larger


class Adapter(nn.Module):
    """A frozen linear layer W plus a trainable product of two thin matrices: x(W + BA·scale)ᵀ."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float):
        super().__init__()
        self.linear, self.scale = linear, scale
        self.A = nn.Parameter(torch.randn(rank, linear.in_features) / math.sqrt(linear.in_features))
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank))  # so it begins as W alone

    def forward(self, x: Tensor) -> Tensor:
        """x: (…, in) → (…, out)."""
        return self.linear(x) + x @ self.A.T @ self.B.T * self.scale


def add_adapters(model: nn.Module, rank: int, scale: float = 2.0) -> None:
    """Freeze a model and put an Adapter around each linear layer in its blocks (Hu et al. 2021)."""
    model.requires_grad_(False)
    for module in list(model.transformer.h.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Adapter(child, rank, scale))


@torch.no_grad()
def merge_adapters(model: nn.Module) -> None:
    """Add what the adapters have learned to the weights, and remove them: as fast as before."""
    for module in list(model.transformer.h.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Adapter):
                child.linear.weight += child.B @ child.A * child.scale
                setattr(module, name, child.linear)
