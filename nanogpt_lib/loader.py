"""Feed a run: windows over token shards, in an order that no world size or batch size changes.

Exported from notebooks/04_training.ipynb; edit the notebook, not this file.

Shapes: B rows per micro-batch, T tokens per row, W processes.
"""

import numpy as np
import torch
from torch import Tensor

from nanogpt_lib.config import UserError
from nanogpt_lib.shards import TokenStream


def epoch_windows(tokens: int, block_size: int, shuffle: bool, seed: int, epoch: int) -> np.ndarray:
    """Start tokens of an epoch's windows of block_size + 1 tokens, in the order of reading.

    Neighbours share a token: the last target of one is the first input of the next. With shuffle,
    order and first cut are drawn from (seed, epoch), so what one epoch leaves at the ends, others
    read. Without, both are the lecture's.
    """
    rng = np.random.default_rng([seed, epoch])
    end = tokens - block_size  # the last window starts before this token
    cut = int(rng.integers(min(block_size, end))) if shuffle else 0
    starts = np.arange(cut, end, block_size)
    return rng.permutation(starts) if shuffle else starts


class WindowOrder:
    """Window starts, epoch after epoch, with a position that can be saved and restored."""

    def __init__(self, tokens: int, block_size: int, shuffle: bool, seed: int):
        self.drawn_from = dict(tokens=tokens, block_size=block_size, shuffle=shuffle, seed=seed)
        self.go_to(epoch=0, position=0)

    def go_to(self, epoch: int, position: int) -> None:
        """Draw the order of an epoch and stand before its window number `position`."""
        self.epoch, self.position = epoch, position
        self.starts = epoch_windows(**self.drawn_from, epoch=epoch)

    def take(self, count: int) -> list[int]:
        """The next `count` starts, across the end of the epoch if need be."""
        taken = []
        while len(taken) < count:
            chosen = self.starts[self.position : self.position + count - len(taken)]
            taken += chosen.tolist()
            self.position += len(chosen)
            if self.position == len(self.starts):
                self.go_to(self.epoch + 1, 0)
        return taken

    def state_dict(self) -> dict:
        """The place, and what the order is drawn from, as plain values for JSON."""
        return {"epoch": self.epoch, "position": self.position, **self.drawn_from}

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state_dict()`; raises UserError if that belongs to another order."""
        for name, value in self.drawn_from.items():
            if state.get(name) != value:
                raise UserError(
                    f"the order of the data was saved with {name} {state.get(name)} and cannot go "
                    f"on with {value}: use the settings and the dataset of the saved run"
                )
        self.go_to(state["epoch"], state["position"])


class TokenLoader:
    """Endless micro-batches (x, y) for one of W processes; it reads only the windows of its rank.

    Row b of micro-step m is window (m·W + rank)·B + b of the order, so together the processes read
    what one with a larger batch would. Raises UserError if the stream is shorter than one window.
    """

    def __init__(
        self,
        stream: TokenStream,
        batch_size: int,
        block_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        seed: int = 1337,
    ):
        if len(stream) <= block_size:
            few = f"{len(stream)} tokens are too few for block_size {block_size}"
            raise UserError(f"{stream.folder}: {few}")
        self.stream, self.batch_size, self.block_size = stream, batch_size, block_size
        self.rank, self.world_size = rank, world_size
        self.order = WindowOrder(len(stream), block_size, shuffle, seed)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Inputs x and targets y, both (B, T) int64; y is x shifted by one token."""
        B, T = self.batch_size, self.block_size
        starts = self.order.take(self.world_size * B)[self.rank * B : (self.rank + 1) * B]
        tokens = torch.from_numpy(np.stack([self.stream.read(s, T + 1) for s in starts]))
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def state_dict(self) -> dict:
        """Where the next micro-step begins; valid for any batch size and number of processes."""
        return self.order.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state_dict()`; raises UserError if data, block_size or seed have changed."""
        self.order.load_state_dict(state)
