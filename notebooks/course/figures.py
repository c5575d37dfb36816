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
