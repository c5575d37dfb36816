"""Several processes, one model: start and stop the group, average gradients, add up numbers.

Exported from notebooks/07_ddp.ipynb; edit the notebook, not this file.
"""

import contextlib
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel

from nanogpt_lib.config import UserError


@dataclass(frozen=True)
class World:
    """This process among all: `rank` of `size`, and `local_rank` among those on this machine."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Rank 0 prints, logs and saves."""
        return self.rank == 0


def read_world() -> World:
    """Who am I? torchrun tells by environment variables; without them, the only process.

    Raises UserError if only some of them are set, as by hand or left over in a shell.
    """
    if "RANK" not in os.environ:
        return World()
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in names if not os.environ.get(name)]:
        raise UserError(f"RANK is set but not {', '.join(missing)}: start with torchrun")
    rank, local_rank, size = (int(os.environ[name]) for name in names[:3])
    return World(rank, local_rank, size)


def own_device(device: torch.device, world: World) -> torch.device:
    """One GPU per process: cuda becomes cuda:local_rank. Everything else stays.

    Raises UserError if this machine has fewer GPUs than processes.
    """
    if device.type != "cuda" or device.index is not None:
        return device
    if world.local_rank >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(f"--nproc_per_node is more than the {count} GPU(s) of this machine")
    own = torch.device("cuda", world.local_rank)
    torch.cuda.set_device(own)
    return own


@contextlib.contextmanager
def process_group(world: World, device: torch.device):
    """Join the group for the length of a `with` block and leave it however the block ends."""
    if world.size == 1:
        yield
        return
    # gloo works on every system and on the CPU; NCCL is for NVIDIA GPUs, on Linux
    nccl = device.type == "cuda" and dist.is_nccl_available()
    store, rank, size = next(dist.rendezvous("env://"))
    # torchrun keeps its store when it restarts the workers: without a corner of their own they
    # would read the addresses of the dead ones there, and wait for them
    store = dist.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    how = {"store": store, "rank": rank, "world_size": size}
    dist.init_process_group("nccl" if nccl else "gloo", device_id=device if nccl else None, **how)
    try:
        yield
    finally:
        dist.destroy_process_group()


def wrap_ddp(model, world: World, device: torch.device):
    """DistributedDataParallel if there is more than one process: backward averages gradients."""
    if world.size == 1:
        return model
    ids = [device.index] if device.type == "cuda" else None
    # gradients live in the buckets instead of being copied there: saves 4 bytes per parameter
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


def sync_gradients(model: nn.Module, sync: bool):
    """A context around forward AND backward of one micro-step: average gradients only if `sync`.

    Averaging once, in the last micro-step, moves a fraction of the bytes. DDP reads the flag in the
    forward pass, so setting it before backward would be too late.
    """
    if sync or not isinstance(model, DistributedDataParallel):
        return contextlib.nullcontext()
    return model.no_sync()


def add_up(values: list[float], world: World, device: torch.device) -> list[float]:
    """Sum each number over all processes, in float64: the result hardly depends on how many."""
    if world.size == 1:
        return values
    on = device if dist.get_backend() == "nccl" else "cpu"
    total = torch.tensor(values, dtype=torch.float64, device=on)
    dist.all_reduce(total)
    return total.tolist()


def wait_for_all(world: World) -> None:
    """Go on when every process has come here."""
    if world.size > 1:
        dist.barrier()
