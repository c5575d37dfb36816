"""Read the next micro-batch in a thread while the device works on the present one."""

from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch
from torch import Tensor


class ReadAhead:
    """A loader whose next micro-batch is read while the device works on the present one.

    The loader is a loader.TokenLoader or anything with its methods. One thread
    prepares one micro-batch (reads, cuts, pins) and then waits. Batches are those of the loader, on
    the device; an error in the thread is raised by next_batch, in the caller. `close` ends the
    thread.
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

    def close(self) -> None:
        """Wait for the thread and end it; no batch can be asked for afterwards."""
        self.thread.shutdown(wait=True, cancel_futures=True)


def feed(loader, device: torch.device):
    """Read ahead where the CPU would wait for a device. On the CPU itself a thread only competes
    with the work, so the loader is returned as it is."""
    return loader if device.type == "cpu" else ReadAhead(loader, device)
