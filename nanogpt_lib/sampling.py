"""Sample text from a model: temperature, top-k, top-p, and a key-value cache against recomputation.

Exported from notebooks/03_sampling.ipynb; edit the notebook, not this file.

Shapes: B rows generated together, T tokens fed at once, S tokens in the cache, V vocabulary.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from nanogpt_lib.context import Context, new_cache
from nanogpt_lib.model import GPT
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.evaluating import evaluating


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Set all but the k largest logits of every row (B, V) to -inf; keep ties with the k-th."""
    kth = logits.topk(min(k, logits.size(-1)), dim=-1).values[:, -1:]  # (B, 1)
    return logits.masked_fill(logits < kth, float("-inf"))


def keep_top_p(probs: Tensor, p: float) -> Tensor:
    """Keep, in every row (B, V), the smallest set of tokens whose mass reaches p; renormalise."""
    sorted_probs, order = probs.sort(dim=-1, descending=True, stable=True)
    before = sorted_probs.cumsum(dim=-1) - sorted_probs  # mass of the tokens ranked higher
    drop = torch.zeros_like(probs, dtype=torch.bool).scatter(1, order, before >= p)
    probs = probs.masked_fill(drop, 0.0)
    return probs / probs.sum(dim=-1, keepdim=True)


def next_token_probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Logits (B, V) → probabilities (B, V), in float32.

    temperature → 0 sharpens towards the largest logit (0 is greedy); top_k keeps the k largest;
    top_p keeps the smallest set of tokens whose probability reaches p (Holtzman et al. 2019).
    """
    if temperature < 0:
        raise UserError(f"temperature {temperature} is negative; 0 is greedy, 1 neutral")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k {top_k} keeps no token; give at least 1, or None for all")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p {top_p} is out of range: give a number above 0, at most 1")
    logits = logits.float()
    if temperature == 0:
        return F.one_hot(logits.argmax(dim=-1), logits.size(-1)).float()
    logits = logits / temperature
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    probs = logits.softmax(dim=-1)
    return probs if top_p is None or top_p == 1 else keep_top_p(probs, top_p)


def draw(probs: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One token per row, (B, V) → (B, 1): the first i with p_0 + … + p_i > u, u uniform in [0, 1).

    Raises UserError if they are not finite, as with a diverged model.
    """
    if probs.device.type != "cpu":  # fast there, and a parallel cumsum may decrease by rounding
        return torch.multinomial(probs, 1, generator=generator)
    ends = probs.cumsum(dim=-1)
    if not ends[:, -1].isfinite().all():
        raise UserError("the logits are not finite: damaged weights, or a run that diverged")
    u = torch.rand(probs.size(0), 1, generator=generator)
    # divided by its last entry, `ends` ends at exactly 1 > u; a token of zero probability spans an
    # empty interval
    return torch.searchsorted(ends / ends[:, -1:], u, right=True)


def next_token_logits(model: GPT, hidden: Tensor) -> Tensor:
    """Hidden states (…, C) → logits (…, V), in float32 even under autocast, without padding."""
    # bf16 near 3 has steps of 0.0156, which would distort the probabilities
    with torch.autocast(device_type=hidden.device.type, enabled=False):
        logits = model.lm_head(hidden.to(model.lm_head.weight.dtype))
    return logits[..., : model.config.vocab_size].float()


def context_start(length: int, block_size: int) -> int:
    """Index of the first token that the model still sees when the text has `length` tokens.

    0 until the context is full. Then the older half is dropped at once, not one token per step:
    every position shifts, so the cache must be rebuilt; dropping half at once keeps rebuilds rare.
    """
    if length <= block_size:
        return 0
    half = max(1, block_size // 2)
    return -(-(length - block_size) // half) * half


@torch.inference_mode()
def stream(
    model: GPT,
    idx: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eot: int | None = None,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> Iterator[Tensor]:
    """Yield the next token of every row of idx (B, T), as (B, 1), up to max_new_tokens times.

    temperature, top_k, top_p: see next_token_probabilities. eot: a row that has sampled it is
    padded with it; once all rows have, generation stops. generator: seed it for reproducible text.
    use_cache: False recomputes everything at every step; the tokens are the same. idx must have at
    least one token; beyond block_size the model sees only the last ones. The model should be in
    evaluation mode.
    """
    config = model.config
    start, cache = 0, new_cache(config.n_layer, config.block_size)
    finished = torch.zeros(idx.size(0), 1, dtype=torch.bool, device=idx.device)
    for _ in range(max_new_tokens):
        if (moved := context_start(idx.size(1), config.block_size)) != start:
            start, cache = moved, new_cache(config.n_layer, config.block_size)
        fresh = idx[:, start + cache[0].length :]  # without a cache its length stays 0
        hidden = model.transformer(fresh, Context.after(cache, fresh) if use_cache else None)
        logits = next_token_logits(model, hidden[:, -1])  # (B, V)
        token = draw(next_token_probabilities(logits, temperature, top_k, top_p), generator)
        if eot is not None:
            token = torch.where(finished, eot, token)
            finished |= token == eot
        idx = torch.cat([idx, token], dim=1)
        yield token
        if eot is not None and finished.all():
            return


def generate(model: GPT, idx: Tensor, max_new_tokens: int, **options) -> Tensor:
    """Continue the prompts idx (B, T) and return prompts and continuation, (B, T + new).

    The options are those of `stream`. The model is in evaluation mode meanwhile.
    """
    with evaluating(model):
        return torch.cat([idx, *stream(model, idx, max_new_tokens, **options)], dim=1)
