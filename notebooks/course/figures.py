"""Interactive figures that chapters call with their own numbers.

    from nanogpt_course import figures

    figures.attention(tokens, weights)          # weights: (layers, heads, T, T)
    figures.sampling(labels, logits, prompt)    # temperature, top-k, top-p, and the tokens drawn

As the last expression of a cell each one shows itself. Numbers may be tensors, arrays or lists.
"""

from collections.abc import Sequence

import numpy as np

from nanogpt_course import stills
from nanogpt_course.interactive import Interactive


def shown(token: str) -> str:
    """A token with its spaces and line breaks made visible."""
    return token.replace(" ", "·").replace("\n", "⏎").replace("\t", "→")


def exact(values) -> list:
    """Nested lists of floats with nine digits, enough to give every float32 back."""
    flat = [float(f"{x:.9g}") for x in np.asarray(values, dtype=np.float64).reshape(-1)]
    return np.array(flat).reshape(np.shape(values)).tolist()


def attention(tokens: Sequence[str], weights) -> Interactive:
    """Attention over a sentence: choose a query, a head and a layer.

    weights: (layers, heads, T, T), each row the probabilities of one query over its keys.
    """
    weights = np.asarray(weights, dtype=np.float64)
    T = len(tokens)
    assert weights.ndim == 4 and weights.shape[2:] == (T, T), "weights: (layers, heads, T, T)"
    below = np.tril_indices(T)
    millionths = np.rint(weights[:, :, below[0], below[1]] * 1e6).astype(int).tolist()
    still = stills.shaded(
        [shown(t) for t in tokens], weights[0, 0, -1].tolist(), "layer 0, head 0, last token"
    )
    title = f"Attention of {weights.shape[1]} heads in {weights.shape[0]} layers over {T} tokens"
    return Interactive("attention", {"tokens": list(tokens), "weights": millionths}, still, title)


def sampling(
    labels: Sequence[str],
    logits,
    prompt: str = "",
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    length: int | None = None,
) -> Interactive:
    """Temperature, top-k and top-p: bars of the next token's probabilities, and what is drawn.

    logits: (V,), and single tokens are drawn; or (V, V), row i after token i, and a text is drawn
    that begins with `prompt`, whose last character must then be a label.
    """
    rows = np.atleast_2d(np.asarray(logits, dtype=np.float64))
    V = len(labels)
    assert rows.shape in ((1, V), (V, V)), "logits: (V,) or (V, V)"
    start = list(labels).index(prompt[-1]) if len(rows) > 1 else 0
    probs = np.exp(rows[start] - rows[start].max())
    probs /= probs.sum()
    best = np.argsort(-probs, kind="stable")[:14]
    still = stills.bars(
        [shown(labels[i]) for i in best], probs[best].tolist(), f"after “{shown(prompt)}”"
    )
    data = {
        "labels": list(labels), "logits": exact(rows), "prompt": prompt, "start": start,
        "temperature": temperature, "top_k": min(top_k or V, V), "top_p": top_p,
        "length": length or (200 if len(rows) > 1 else 5),
    }  # fmt: skip
    return Interactive(
        "sampling", data, still, "Probabilities of the next token by temperature, top-k and top-p"
    )


FORMATS = [("float32", 8, 23), ("bfloat16", 8, 7), ("float16", 5, 10)]  # exponent, mantissa bits


def float_bits(value: float = 0.1, dtype: str = "bfloat16") -> Interactive:
    """The bits of a number in float32, bfloat16 and float16: type a number, or click a bit."""
    names = [name for name, _, _ in FORMATS]
    data = {"value": float(value), "formats": FORMATS, "format": names.index(dtype)}
    rows = [["format", "sign", "exponent", "mantissa"]]
    rows += [[name, "1", str(e), str(f)] for name, e, f in FORMATS]
    still = stills.table(rows, f"bits of a float, such as {value}", [90, 80, 100, 100])
    return Interactive("float_bits", data, still, f"The bits of {value} in three formats")


def kv_cache(tokens: Sequence[str], q, k, v) -> Interactive:
    """The key-value cache token by token: what is computed, what is read, the weights and output.

    q, k, v: (T, D), one head's queries, keys and values; a few dimensions are enough.
    """
    q, k, v = (np.asarray(x, dtype=np.float64) for x in (q, k, v))
    assert q.shape == k.shape == v.shape and len(q) == len(tokens), "q, k, v: (T, D)"
    data = {"tokens": list(tokens), "q": exact(q), "k": exact(k), "v": exact(v)}
    rows = [["token", "computed", "read", "without a cache"]]
    rows += [[shown(t), "1", str(i), str(i + 1)] for i, t in enumerate(tokens)]
    still = stills.table(rows, "keys and values per new token", [110, 90, 70, 140])
    title = f"The key-value cache over {len(tokens)} tokens, step by step"
    return Interactive("kv_cache", data, still, title)


def ring_all_reduce(gradients) -> Interactive:
    """Ring all-reduce step by step: reduce-scatter, then all-gather.

    gradients: (W, W), for each of W ranks its gradients in W chunks, one number for each chunk.
    """
    gradients = np.asarray(gradients, dtype=np.float64)
    W = len(gradients)
    assert gradients.shape == (W, W) and W > 1, "gradients: (ranks, chunks), as many as each other"
    rows = [["", *(f"piece {c}" for c in range(W))]]
    rows += [[f"rank {r}", *(f"{x:.4g}" for x in gradients[r])] for r in range(W)]
    rows.append(["sum", *(f"{x:.4g}" for x in gradients.sum(axis=0))])
    still = stills.table(rows, "before, and what every rank has after", [70, *[90] * W])
    title = f"Ring all-reduce among {W} ranks, {2 * (W - 1)} steps"
    return Interactive("ring_all_reduce", {"gradients": exact(gradients)}, still, title)


def schedule(
    *,
    max_lr: float,
    min_lr: float,
    warmup_steps: int,
    max_steps: int,
    total_batch_size: int = 524_288,
    batch_size: int = 64,
    block_size: int = 1024,
    world_size: int = 1,
    dataset_tokens: int | None = None,
    step: int = 0,
) -> Interactive:
    """A calculator: the learning rate at each step, and a step's rows, micro-steps and tokens."""
    data = dict(locals())
    x = np.linspace(0, max_steps, 200)
    wave = 0.5 * (1 + np.cos(np.pi * (x - warmup_steps) / max(1, max_steps - warmup_steps)))
    rate = np.where(
        x < warmup_steps, max_lr * (x + 1) / max(1, warmup_steps), min_lr + wave * (max_lr - min_lr)
    )
    curve = stills.line(
        [(20 + 540 * a / max_steps, 150 - 110 * b / max_lr) for a, b in zip(x, rate, strict=True)]
    )
    words = f"learning rate: {max_lr:g} after {warmup_steps} steps, {min_lr:g} at {max_steps}"
    still = stills.picture(580, 170, stills.text(12, 22, words), curve)
    return Interactive("schedule", data, still, "Learning rate by step, and the tokens of a step")


def hellaswag_quiz(items: Sequence[dict]) -> Interactive:
    """HellaSwag as a quiz against a model, which takes the ending of the least loss.

    items: dicts with ctx, endings (four), label and losses (the model's, summed over each ending in
    nats).
    """
    names = ("ctx", "endings", "label", "losses")
    chosen = [{name: item[name] for name in names} for item in items]
    for item in chosen:
        item["losses"] = exact(item["losses"])
        item["label"] = int(item["label"])
    first = chosen[0]
    lines = [f"{'ABCD'[i]}. {ending}" for i, ending in enumerate(first["endings"])]
    parts = [stills.text(12, 24 + 24 * i, t[:90]) for i, t in enumerate([first["ctx"], *lines])]
    still = stills.picture(720, 140, *parts)
    title = f"A quiz of {len(chosen)} HellaSwag items against a model"
    return Interactive("hellaswag_quiz", {"items": chosen}, still, title)
