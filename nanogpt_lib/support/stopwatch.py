"""How long this rank works on a step before it waits for the others, and which rank is last."""

import time
from statistics import median

import torch


class Stopwatch:
    """Seconds between its creation and `stop`, on a GPU of the work queued in between.

    With DistributedDataParallel, ranks wait for each other in the last backward pass of a step; a
    whole step takes as long on every rank, whichever is slow. So stop it before that pass.
    """

    def __init__(self, device: torch.device):
        self.on_gpu = device.type == "cuda"
        self.begun = self.mark()
        self.ended = self.begun

    def mark(self):
        """This moment: of the clock, or of the GPU's queue, which is not waited for."""
        if not self.on_gpu:
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def stop(self) -> None:
        """Take the time."""
        self.ended = self.mark()

    def seconds(self) -> float:
        """The time taken; on a GPU, once the step's work is done."""
        if not self.on_gpu:
            return self.ended - self.begun
        return self.begun.elapsed_time(self.ended) / 1e3


def slowest(seconds: list[float]) -> dict[str, float]:
    """From each rank's seconds: the slowest rank, and its time as a multiple of the others'."""
    rank = seconds.index(max(seconds))
    others = median(seconds[:rank] + seconds[rank + 1 :])
    return {"slowest_rank": rank, "slowest_ratio": round(seconds[rank] / max(others, 1e-9), 3)}
