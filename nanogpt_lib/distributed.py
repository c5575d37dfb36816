"""Several processes, one model: start and stop the group, average gradients, add up numbers.

Exported from notebooks/07_ddp.ipynb; edit the notebook, not this file.
"""

import contextlib
import os
import warnings
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn as nn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from nanogpt_lib.support.errors import UserError


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
    if switch := getattr(model, "set_requires_gradient_sync", None):  # FSDP, compiled or not
        switch(sync)
    elif isinstance(model, DistributedDataParallel) and not sync:
        return model.no_sync()
    return contextlib.nullcontext()


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


def shard_fsdp(model, world: World, device: torch.device) -> None:
    """Leave each rank 1/W of a GPT's weights, in place (FSDP); before the optimizer is made.

    Every rank must come with the same weights: each keeps its part, nothing is sent. A block's
    weights are gathered when its turn comes and dropped after it, in fp32, so that autocast does
    the same arithmetic as without FSDP. Raises UserError where no backend can do it.
    """
    if world.size == 1:
        return
    if device.type != "cpu" and dist.get_backend() != "nccl":
        raise UserError(f"--parallel fsdp on {device.type} needs NCCL; take --parallel ddp")
    from torch.distributed.fsdp import fully_shard  # here: it takes most of a second to import

    mesh = dist.init_device_mesh(device.type, (world.size,))
    for block in model.transformer.h:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)  # the rest: wte, which is lm_head, wpe and ln_f
    # the logits are a view, which FSDP warns of; nobody writes into them
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")


def clip_gradients(model: nn.Module, limit: float) -> Tensor:
    """Scale the gradient down to a norm of `limit`; return its norm before, over all ranks."""
    return full_tensor(torch.nn.utils.clip_grad_norm_(model.parameters(), limit))


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, on every rank (which must all ask); any other one as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def unsharded(model, device: torch.device):
    """The model itself or, if it is sharded, a plain copy with all weights (4 bytes per parameter).

    Every rank must ask for it. Then each may call it alone or not at all, as evaluation and samples
    do; a sharded model's forward pass is a collective.
    """
    if not hasattr(model, "unshard"):
        return model
    with torch.device(device), torch.no_grad():
        plain = type(model)(model.config)  # FSDP's class makes one of the class it was made from
        for ours, theirs in zip(plain.parameters(), model.parameters(), strict=True):
            ours.copy_(full_tensor(theirs))
    return plain


def collect(tensors: dict[str, Tensor], world: World) -> dict[str, Tensor]:
    """Tensors made whole on rank 0, for a file; every rank takes part, the others get {}."""
    found = {}
    for name, tensor in tensors.items():
        value = full_tensor(tensor)
        if world.is_main:  # into main memory at once: no card need hold two of them
            found[name] = (value if value is tensor else value.cpu()).contiguous()
    return found


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """What this rank keeps of a whole tensor, cut as the parameter `like` is; nothing is sent."""
    if not hasattr(like, "full_tensor") or tensor.dim() == 0:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    where = like.device_mesh, like.placements
    part = distribute_tensor(tensor.to(like.device), *where, src_data_rank=None)
    return part.clone()  # memory of its own: a view would keep the whole
