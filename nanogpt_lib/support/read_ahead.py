"""Read the next micro-batch in a thread while the device works on the current one."""

from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch
from torch import Tensor


class ReadAhead:
    """A loader whose next micro-batch is read while the device works on the current one.

    The loader is a loader.TokenLoader or anything with its methods. One thread prepares one
    micro-batch (reads, cuts, pins) and then waits. The batches are the loader's, moved to the
    device; an error in the thread is raised by next_batch, in the caller. `close` ends the thread.
    """

    def __init__(self, loader, device: torch.device):
        self.loader, self.device = loader, device
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.position = loader.state_dict()
        self.ahead: Future | None = None

    @property
    def tokens(self):
        """The tokens that the loader reads."""
        return self.loader.tokens

    def prepare(self) -> tuple[Tensor, Tensor, dict]:
        """In the thread: the next micro-batch, and the position after it."""
        x, y = self.loader.next_batch()
        if self.device.type == "cuda":  # the GPU copies from pinned memory without the CPU
            x, y = x.pin_memory(), y.pin_memory()
        return x, y, self.loader.state_dict()

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Inputs x and targets y, both (B, T) int64, on the device."""
        current = self.ahead or self.thread.submit(self.prepare)
        x, y, self.position = current.result()
        self.ahead = self.thread.submit(self.prepare)
        return x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)

    def state_dict(self) -> dict:
        """The position after the last batch returned, not after the one read ahead."""
        return self.position

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict()`; drop what was read ahead."""
        if self.ahead:
            wait([self.ahead])  # the thread must not be using the loader meanwhile
        self.loader.load_state_dict(state)
        self.position, self.ahead = state, None

    def close(self) -> None:
        """Wait for the thread and end it; next_batch cannot be called afterwards."""
        self.thread.shutdown(wait=True, cancel_futures=True)


def feed(loader, device: torch.device):
    """Wrap the loader in ReadAhead, unless the device is the CPU.

    There a thread would only compete with training, so the loader is returned unchanged.
    """
    return loader if device.type == "cpu" else ReadAhead(loader, device)
