"""Batches for training: rows of tokens, in an order that does not depend on the batch size.

Exported from notebooks/04_training.ipynb, 07_ddp.ipynb and 08_fineweb.ipynb; edit the notebooks,
not this file.

Shapes: B rows per micro-batch, T tokens per row; W processes share them from chapter 07 on.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nanogpt_lib.support.errors import UserError


class TokenLoader:
    """Endless micro-batches (x, y) for one of W processes; it reads only the windows of its rank.

    Row b of micro-step m is window (m·W + rank)·B + b of the order, so together the processes read
    what one with a larger batch would. `tokens` is anything with a length that can be sliced.
    Raises UserError if it is shorter than one window.
    """

    def __init__(
        self,
        tokens: Sequence[int],
        batch_size: int,
        block_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        seed: int = 1337,
    ):
        if len(tokens) <= block_size:
            few = f"{len(tokens)} tokens are too few for block_size {block_size}"
            raise UserError(f"{getattr(tokens, 'folder', 'the data')}: {few}")
        self.tokens, self.batch_size, self.block_size = tokens, batch_size, block_size
        self.rank, self.world_size = rank, world_size
        self.order = WindowOrder(len(tokens), block_size, shuffle, seed)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Inputs x and targets y, both (B, T) int64; y is x shifted by one token."""
        B, T = self.batch_size, self.block_size
        starts = self.order.take(self.world_size * B)[self.rank * B : (self.rank + 1) * B]
        rows = [torch.as_tensor(self.tokens[s : s + T + 1], dtype=torch.long) for s in starts]
        windows = torch.stack(rows)  # (B, T + 1)
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    def state_dict(self) -> dict:
        """Where the next micro-step begins; valid for any batch size and world size."""
        return self.order.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict()`; raises UserError if data, block_size or seed changed."""
        self.order.load_state_dict(state)


def epoch_windows(
    tokens: int, block_size: int, shuffle: bool, seed: int, epoch: int
) -> tuple[int, np.ndarray]:
    """An epoch's cut, and the numbers of its windows in reading order.

    Window i is the block_size + 1 tokens from cut + i·block_size. Neighbours share a token: the
    last target of one is the first input of the next. With shuffle, order and cut are drawn from
    (seed, epoch): tokens cut off in one epoch are read in another. Unshuffled, order and cut match
    the lecture.
    """
    rng = np.random.default_rng([seed, epoch])
    end = tokens - block_size  # the last window starts before this token
    cut = int(rng.integers(min(block_size, end))) if shuffle else 0
    # 4 bytes for a window of 2·block_size bytes: 39 MB for 10 billion tokens in windows of 1024
    numbers = np.arange(len(range(cut, end, block_size)), dtype=np.uint32)
    if shuffle:
        rng.shuffle(numbers)
    return cut, numbers


class WindowOrder:
    """Window starts, epoch after epoch, with a position that can be saved and restored."""

    def __init__(self, tokens: int, block_size: int, shuffle: bool, seed: int):
        self.drawn_from = dict(tokens=tokens, block_size=block_size, shuffle=shuffle, seed=seed)
        self.go_to(epoch=0, position=0)

    def go_to(self, epoch: int, position: int) -> None:
        """Draw the order of an epoch and move to its window number `position`."""
        self.epoch, self.position = epoch, position
        self.cut, self.numbers = epoch_windows(**self.drawn_from, epoch=epoch)

    def take(self, count: int) -> list[int]:
        """The next `count` starts, continuing into the next epoch if needed."""
        taken = []
        while len(taken) < count:
            chosen = self.numbers[self.position : self.position + count - len(taken)]
            taken += [self.cut + i * self.drawn_from["block_size"] for i in chosen.tolist()]
            self.position += len(chosen)
            if self.position == len(self.numbers):
                self.go_to(self.epoch + 1, 0)
        return taken

    def state_dict(self) -> dict:
        """The position, and what the order is drawn from, as plain values for JSON."""
        return {"epoch": self.epoch, "position": self.position, **self.drawn_from}

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict()`; raises UserError if that belongs to another order."""
        for name, value in self.drawn_from.items():
            if state.get(name) != value:
                raise UserError(
                    f"the order of the data was saved with {name} {state.get(name)} and cannot "
                    f"continue with {value}: use the settings and the dataset of the saved run"
                )
        self.go_to(state["epoch"], state["position"])
