"""Weights cut over processes (FSDP): cut them, send them out, and make them whole again."""

import warnings
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
import torch.nn as nn
from torch import Tensor

from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.processes import World


def shard_fsdp(
    model: nn.Module, blocks: Iterable[nn.Module], world: World, device: torch.device
) -> None:
    """Leave each rank 1/W of a model's weights, in place (FSDP); before the optimizer is made.

    Every rank must come with the same weights: each keeps its part, nothing is sent. The weights
    of each of `blocks` are gathered when its turn comes and dropped after it, in fp32, so that
    autocast does the same arithmetic as without FSDP. Raises UserError where no backend can do it.
    """
    if world.size == 1:
        return
    if device.type != "cpu" and dist.get_backend() != "nccl":
        raise UserError(f"--parallel fsdp on {device.type} needs NCCL; take --parallel ddp")
    from torch.distributed.fsdp import fully_shard  # here: it takes most of a second to import

    mesh = dist.init_device_mesh(device.type, (world.size,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)  # the rest: wte, which is lm_head, wpe and ln_f
    # the logits are a view, which FSDP warns of; nobody writes into them
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, on every rank (which must all ask); any other one as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def unsharded(model, kind: Callable, device: torch.device):
    """The model itself or, if it is sharded, a plain copy with all weights (4 bytes per parameter).

    `kind` makes a plain model from a config. Every rank must ask for it. Then each may call it
    alone or not at all, as evaluation and samples do; a sharded model's forward pass is a
    collective.
    """
    if not hasattr(model, "unshard"):
        return model
    with torch.device(device), torch.no_grad():
        plain = kind(model.config)
        for ours, theirs in zip(plain.parameters(), model.parameters(), strict=True):
            ours.copy_(full_tensor(theirs))
    return plain


def rows_of(tensor: Tensor) -> tuple[int, int]:
    """Which rows of a sharded tensor this rank holds: from the first to before the second."""
    mesh = tensor.device_mesh
    each = -(-tensor.shape[0] // mesh.size())  # as torch.chunk cuts; the last ranks may get less
    start = min(mesh.get_local_rank() * each, tensor.shape[0])
    return start, min(start + each, tensor.shape[0])


def own_rows(tensor: Tensor, world: World) -> Tensor | None:
    """What this rank has to save of a tensor: its rows or, unless it is sharded, rank 0 all of it.

    None if that is nothing.
    """
    if not hasattr(tensor, "to_local"):
        return tensor.contiguous() if world.is_main else None
    local = tensor.to_local()
    return local.cpu().contiguous() if local.numel() else None


def copy_rows(tensor: Tensor, read: Callable[[int, int | None], Tensor]) -> None:
    """Fill a tensor from read(start, stop), which gives rows: this rank's, if it is sharded."""
    with torch.no_grad():
        if not hasattr(tensor, "to_local"):
            tensor.copy_(read(0, None))
        elif (rows := rows_of(tensor))[0] < rows[1]:
            tensor.to_local().copy_(read(*rows))
