"""The context of a forward pass: positions of its tokens, what they may attend to, and the cache.

Exported from notebooks/03_sampling.ipynb; edit the notebook, not this file.

Shapes: B batch, T tokens fed at once, S tokens so far (S ≥ T), H heads, D head size.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


class LayerCache:
    """Keys and values of one block, (B, H, S, D), in a buffer allocated once."""

    def __init__(self, block_size: int):
        self.block_size = block_size
        self.length = 0  # S, tokens in the cache

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of T new tokens; return those of all S tokens so far."""
        B, H, T, D = k.shape
        if self.length == 0:
            self.k = k.new_empty(B, H, self.block_size, D)
            self.v = v.new_empty(B, H, self.block_size, D)
        end = self.length + T
        self.k[:, :, self.length : end] = k
        self.v[:, :, self.length : end] = v
        self.length = end
        return self.k[:, :, :end], self.v[:, :, :end]


def new_cache(n_layer: int, block_size: int) -> list[LayerCache]:
    """An empty cache, one entry per block."""
    return [LayerCache(block_size) for _ in range(n_layer)]


@dataclass(frozen=True)
class Context:
    """Positions of the tokens in a forward pass, what they may attend to, and what came before.

    position: (T,) or (B, T), each token's position in its sequence. visible: (B, 1, T, S) booleans,
    the tokens that each may attend to; None: itself and all before it. cache: keys and values of
    earlier tokens, one entry per block; those of the new tokens are appended. block: the current
    block's number.
    """

    position: Tensor
    visible: Tensor | None = None
    cache: list[LayerCache] | None = None
    block: int = 0

    @classmethod
    def after(cls, cache: list[LayerCache], idx: Tensor) -> "Context":
        """The context of tokens idx (B, T) that follow those in the cache."""
        start = cache[0].length
        return cls(torch.arange(start, start + idx.size(1), device=idx.device), cache=cache)

    def layer(self, number: int) -> "Context":
        """This context for block number `number`."""
        return replace(self, block=number)

    def remember(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, T, D) of the new tokens → (B, H, S, D), of all tokens so far."""
        return (k, v) if self.cache is None else self.cache[self.block].append(k, v)
