"""Feed a run: windows over token shards, in an order that no world size or batch size changes.

Exported from notebooks/04_training.ipynb; edit the notebook, not this file.

Shapes: B rows per micro-batch, T tokens per row, W processes.
"""

from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np
import torch
from torch import Tensor

from nanogpt_lib.shards import TokenStream
from nanogpt_lib.support.errors import UserError


def epoch_windows(
    tokens: int, block_size: int, shuffle: bool, seed: int, epoch: int
) -> tuple[int, np.ndarray]:
    """The cut of an epoch and its windows, numbered, in the order of reading.

    Window i is the block_size + 1 tokens from cut + i·block_size on. Neighbours share a token: the
    last target of one is the first input of the next. With shuffle, order and cut are drawn from
    (seed, epoch), so what one epoch leaves at the ends, others read. Without, both are the
    lecture's.
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
        """Draw the order of an epoch and stand before its window number `position`."""
        self.epoch, self.position = epoch, position
        self.cut, self.numbers = epoch_windows(**self.drawn_from, epoch=epoch)

    def take(self, count: int) -> list[int]:
        """The next `count` starts, across the end of the epoch if need be."""
        taken = []
        while len(taken) < count:
            chosen = self.numbers[self.position : self.position + count - len(taken)]
            taken += [self.cut + i * self.drawn_from["block_size"] for i in chosen.tolist()]
            self.position += len(chosen)
            if self.position == len(self.numbers):
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


class ReadAhead:
    """A TokenLoader whose next micro-batch is read while the device works on the present one.

    One thread prepares one micro-batch (reads, cuts, pins) and then waits. Batches are those of the
    loader, on the device; an error in the thread is raised by next_batch, in the caller.
    """

    def __init__(self, loader: TokenLoader, device: torch.device):
        self.loader, self.device = loader, device
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.position = loader.state_dict()
        self.ahead: Future | None = None

    def prepare(self) -> tuple[Tensor, Tensor, dict]:
        """In the thread: the next micro-batch, and the position behind it."""
        x, y = self.loader.next_batch()
        if self.device.type == "cuda":  # from pinned memory the GPU fetches without the CPU's help
            x, y = x.pin_memory(), y.pin_memory()
        return x, y, self.loader.state_dict()

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Inputs x and targets y, both (B, T) int64, on the device."""
        current = self.ahead or self.thread.submit(self.prepare)
        x, y, self.position = current.result()
        self.ahead = self.thread.submit(self.prepare)
        return x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)

    def state_dict(self) -> dict:
        """Where the next micro-step begins: behind what was handed out, not what was read ahead."""
        return self.position

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state_dict()`; what was read ahead is dropped."""
        if self.ahead:
            wait([self.ahead])  # the thread must not move the loader under our hands
        self.loader.load_state_dict(state)
        self.position, self.ahead = state, None


def feed(loader: TokenLoader, device: torch.device) -> TokenLoader | ReadAhead:
    """Read ahead where the CPU would wait for a device. On the CPU itself a thread only competes
    with the work, so the loader is returned as it is."""
    return loader if device.type == "cpu" else ReadAhead(loader, device)
