"""What a run will need: hours and disk. For bench.py and the preflight."""

from dataclasses import dataclass, field

import torch.nn as nn

from nanogpt_lib.config import TrainConfig

LOG_LINE = 250  # bytes of log.jsonl per step, rounded up


# --- time ---------------------------------------------------------------------------------------


def training_seconds(config: TrainConfig, tokens_per_second: float, step: int = 0) -> float:
    """Seconds that the updates after `step` take at this rate, without evaluating and saving."""
    return (config.max_steps - step) * config.total_batch_size / tokens_per_second


def times_due(every: int, first: int, last: int) -> int:
    """How often something is done that is due at multiples of `every` from first to last (0: never)
    and at `last` in any case; see Run.due."""
    multiples = last // every - (first - 1) // every if every else 0
    return multiples + (not every or last % every > 0)


@dataclass
class Forecast:
    """A run's hours: the updates after `step`, and what is done besides them."""

    config: TrainConfig
    step_seconds: float
    step: int = 0
    extras: dict[str, float] = field(default_factory=dict)  # name → seconds in the whole run

    @property
    def updates(self) -> float:
        """Seconds spent in updates."""
        return training_seconds(
            self.config, self.config.total_batch_size / self.step_seconds, self.step
        )

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return self.updates + sum(self.extras.values())

    def describe(self) -> str:
        """Updates, extras and their sum."""
        steps = self.config.max_steps - self.step
        updates = f"{steps:,} steps × {in_time(self.step_seconds)} = {in_hours(self.updates)}"
        extras = "".join(f" + {name} {in_hours(s)}" for name, s in self.extras.items())
        return f"{updates};{extras} = {in_hours(self.seconds)}" if extras else updates


def in_hours(seconds: float) -> str:
    """Seconds as hours with three digits, or as minutes or seconds if that is shorter."""
    if seconds >= 3600:
        return f"{seconds / 3600:,.3g} h" if seconds < 3.6e6 else f"{seconds / 3600:,.0f} h"
    return f"{seconds / 60:.3g} min" if seconds >= 60 else f"{seconds:.2g} s"


def in_time(seconds: float) -> str:
    """The length of a step: 141 ms, 2.35 s."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


# --- disk ---------------------------------------------------------------------------------------


def checkpoint_bytes(model: nn.Module, optimizer_bytes: int) -> int:
    """The size of a checkpoint: float32 weights and the optimizer's state."""
    return 4 * sum(p.numel() for p in model.parameters()) + optimizer_bytes


def checkpoints_at_once(config: TrainConfig, step: int = 0) -> int:
    """The most checkpoints that are on the disk together.

    The newest --keep-checkpoints, the best one, and the next while it is written.
    """
    written = times_due(config.save_every, step + 1, config.max_steps)
    return min(written, config.keep_checkpoints + 2) if config.keep_checkpoints else written
