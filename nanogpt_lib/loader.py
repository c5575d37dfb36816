"""Feed a run: windows over token shards, in an order that no world size or batch size changes.

Exported from notebooks/04_training.ipynb; edit the notebook, not this file.

Shapes: B rows per micro-batch, T tokens per row, W processes.
"""

import numpy as np
import torch
from torch import Tensor

from nanogpt_lib.config import UserError
from nanogpt_lib.shards import TokenStream


class TokenLoader:
    """Endless micro-batches (x, y) for one of W processes.

    The stream is cut into windows of T tokens (plus one, the last target). Micro-step m of the run
    reads windows (m·W + rank)·B … + B - 1 of the epoch's order, so together the processes read what
    one process with a larger batch would. With shuffle, every epoch has its own order and its own
    cut, both drawn from (seed, epoch); without, order and cut are the lecture's.
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
            raise UserError(
                f"{stream.folder}: {len(stream)} tokens are too few for block_size {block_size}"
            )
        self.stream = stream
        self.batch_size, self.block_size = batch_size, block_size
        self.rank, self.world_size = rank, world_size
        self.shuffle, self.seed = shuffle, seed
        self.position = 0  # windows of this epoch that all processes together have read
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Draw the cut and the order of an epoch."""
        rng = np.random.default_rng([self.seed, epoch])
        T, n = self.block_size, len(self.stream)
        self.epoch = epoch
        # a random cut: later epochs see other windows, and the tail that the first one left
        self.cut = int(rng.integers(min(T, n - T))) if self.shuffle else 0
        windows = (n - 1 - self.cut) // T
        self.order = rng.permutation(windows) if self.shuffle else np.arange(windows)

    def take(self, count: int) -> list[tuple[int, int]]:
        """Start tokens of the next `count` windows over all processes, across the epoch's end."""
        taken = []
        while len(taken) < count:
            chosen = self.order[self.position : self.position + count - len(taken)]
            taken += [self.cut + int(w) * self.block_size for w in chosen]
            self.position += len(chosen)
            if self.position == len(self.order):
                self.start_epoch(self.epoch + 1)
                self.position = 0
        return taken

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Inputs x and targets y, both (B, T) int64; y is x shifted by one token."""
        B, T = self.batch_size, self.block_size
        starts = self.take(self.world_size * B)[self.rank * B : (self.rank + 1) * B]
        rows = np.stack([self.stream.read(start, T + 1) for start in starts])  # (B, T + 1)
        tokens = torch.from_numpy(rows)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def state_dict(self) -> dict:
        """Where the next micro-step begins; valid for any batch size and number of processes."""
        return {"epoch": self.epoch, "position": self.position, "windows": len(self.order)}

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state_dict()`; raises UserError if the data or block_size has changed."""
        self.start_epoch(state["epoch"])
        if len(self.order) != state["windows"]:
            raise UserError(
                f"{self.stream.folder}: the epoch has {len(self.order)} windows, the checkpoint "
                f"was made with {state['windows']}: another dataset, block_size or seed"
            )
        self.position = state["position"]
