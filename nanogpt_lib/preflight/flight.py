"""What the checks of a preflight share: the settings, the run that is built, what was measured."""

import gc
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

from nanogpt_lib.checkpoint import optimizer_tensors, weights_of
from nanogpt_lib.config import TrainConfig
from nanogpt_lib.device import choose_dtype
from nanogpt_lib.preflight.machine import digest, local_size
from nanogpt_lib.run import Run, prepare
from nanogpt_lib.support.checks import Checks, quiet
from nanogpt_lib.support.guard import Stopper
from nanogpt_lib.support.memory import memory_bytes, training_bytes
from nanogpt_lib.support.processes import World


class Loop(NamedTuple):
    """The parts of train.py's loop: what is checked is what will run."""

    update: Callable[[Run, Stopper], tuple[dict, bool]]
    evaluate_and_sample: Callable[[Run], None]
    speed: Callable[[Run, float], dict]


@dataclass
class Flight:
    """What the checks share."""

    config: TrainConfig  # as given, but for data that has been verified
    world: World
    device: torch.device
    loop: Loop
    checks: Checks
    meta: dict = field(default_factory=dict)  # of the dataset
    model: nn.Module | None = None  # on the meta device: shapes only
    optimizer_bytes: int = 0
    folder: Path = Path()  # temporary, on the file system of --out
    run: Run | None = None
    first_step: int | None = None  # 0, or where the run resumes
    seconds: dict[str, float] = field(default_factory=dict)  # measured, by name

    @property
    def dtype(self) -> torch.dtype:
        """Of the matrix products."""
        return choose_dtype(self.device, self.config.dtype)

    @property
    def memory(self) -> float:
        """Bytes for this process; processes on a CPU share its memory."""
        shared = local_size(self.world) if self.device.type == "cpu" else 1
        return (memory_bytes(self.device) or math.inf) / shared

    @property
    def ranks(self) -> int:
        """Over how many processes the model is sharded."""
        return self.world.size if self.config.parallel == "fsdp" else 1

    def need(self, rows: int, ranks: int) -> int:
        """Bytes of a step with so many rows, sharded over so many ranks, by the formula."""
        return training_bytes(self.model, rows, self.dtype, self.optimizer_bytes, ranks)


# --- building, and letting go -------------------------------------------------------------------


def build(flight: Flight, config: TrainConfig, world: World) -> Run:
    """A run ready to train by these settings; whatever it writes goes into the temporary folder."""
    start = perf_counter()
    with quiet():
        run = prepare(replace(config), world, flight.device, flight.meta)
    run.config = replace(run.config, out=str(flight.folder))
    flight.first_step = run.step if flight.first_step is None else flight.first_step
    # the first time, which compiles, takes longest
    flight.seconds["start"] = max(flight.seconds.get("start", 0.0), perf_counter() - start)
    return run


def let_go(flight: Flight) -> None:
    """Free the run and its memory."""
    if flight.run:
        flight.run.close()
    flight.run = None
    gc.collect()
    if flight.device.type == "cuda":
        torch.cuda.empty_cache()


def take(flight: Flight, run: Run, count: int, micro_steps: int) -> list[tuple[float, float]]:
    """Make `count` updates of so many micro-steps; their losses and gradient norms."""
    config, whole = run.config, run.micro_steps
    tokens = micro_steps * run.rows * config.block_size * run.world.size
    run.micro_steps, run.config = micro_steps, replace(config, total_batch_size=tokens)
    taken, stopper = [], Stopper()
    for _ in range(count):
        metrics, _ = flight.loop.update(run, stopper)
        run.progress.step += 1
        taken.append((metrics["train_loss"], metrics["grad_norm"]))
    run.micro_steps, run.config = whole, config
    return taken


# --- state --------------------------------------------------------------------------------------


def fingerprint(tensor: Tensor) -> str:
    """A digest of a tensor, or of this rank's rows of a sharded one."""
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    data = local.detach().cpu().contiguous().numpy().data.cast("B") if local.numel() else b""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def state_of(run: Run) -> dict[str, object]:
    """Digests of this rank's weights and optimizer state, and the run's progress."""
    tensors = {**weights_of(run.raw), **optimizer_tensors(run.raw, run.optimizer)}
    found = {name: fingerprint(tensor) for name, tensor in tensors.items()}
    return {**found, "step": run.step, "position in the data": digest(run.loader.state_dict())}
