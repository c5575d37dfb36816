"""Several processes, one model: average gradients, clip them, and sum numbers over all ranks.

Exported from notebooks/07_ddp.ipynb; edit the notebook, not this file.
"""

import contextlib

import torch
import torch.distributed as dist
import torch.nn as nn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from nanogpt_lib.support.processes import World
from nanogpt_lib.support.sharding import full_tensor


def wrap_ddp(model, world: World, device: torch.device):
    """DistributedDataParallel if there is more than one process: backward averages gradients."""
    if world.size == 1:
        return model
    ids = [device.index] if device.type == "cuda" else None
    # gradients live in the buckets instead of being copied there: saves 4 bytes per parameter
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


def sync_gradients(model: nn.Module, sync: bool):
    """A context around forward AND backward of a micro-batch: average gradients if `sync`.

    Averaging once, with the last of a step, moves a fraction of the bytes. DDP reads the flag in
    the forward pass, so setting it before backward would be too late.
    """
    if switch := getattr(model, "set_requires_gradient_sync", None):  # FSDP
        switch(sync)
    elif isinstance(model, DistributedDataParallel) and not sync:
        return model.no_sync()
    return contextlib.nullcontext()


def all_reduce_sum(values: list[float], world: World, device: torch.device) -> list[float]:
    """Sum each number over all ranks, in float64, so that the world size hardly matters."""
    if world.size == 1:
        return values
    on = device if dist.get_backend() == "nccl" else "cpu"
    total = torch.tensor(values, dtype=torch.float64, device=on)
    dist.all_reduce(total)
    return total.tolist()


def clip_gradients(model: nn.Module, limit: float) -> Tensor:
    """Clip the gradient to a norm of `limit`; return its norm before that, over all ranks."""
    return full_tensor(torch.nn.utils.clip_grad_norm_(model.parameters(), limit))
