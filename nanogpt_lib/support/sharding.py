"""Sharding a model's weights over processes (FSDP): build, save and load by rows."""

import contextlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn as nn
from safetensors.torch import save_file
from torch import Tensor

from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.processes import World


def shard_fsdp(
    model: nn.Module, blocks: Iterable[nn.Module], world: World, device: torch.device
) -> None:
    """Shard a model's weights in place (FSDP), 1/W per rank; call before making the optimizer.

    Every rank must pass the same weights: each keeps its part, nothing is sent. The weights of each
    of `blocks` are gathered just before it runs and freed after it, in fp32, so that autocast does
    the same arithmetic as without FSDP. Raises UserError if no backend supports it.
    """
    if world.size == 1:
        return
    if device.type != "cpu" and dist.get_backend() != "nccl":
        raise UserError(f"--parallel fsdp on {device.type} needs NCCL; take --parallel ddp")
    shard_blocks(model, blocks, dist.init_device_mesh(device.type, (world.size,)))


def shard_blocks(model: nn.Module, blocks: Iterable[nn.Module], mesh) -> None:
    """Shard each of `blocks`, then the rest of the model, over the processes of a device mesh."""
    from torch.distributed.fsdp import fully_shard  # here: it takes most of a second to import

    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)  # the rest: wte, which is lm_head, wpe and ln_f
    # FSDP warns that the logits are a view; nothing writes into them
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")


@contextlib.contextmanager
def without_weights(note: Callable[[Tensor, Tensor], None] | None = None) -> Iterator[None]:
    """Modules created in this block have buffers, but their parameters take no memory.

    Parameters are on the meta device: shapes without contents. See `give_memory`. `note`, if given,
    is called with every parameter and what takes its place.
    """
    register = nn.Module.register_parameter

    def register_on_meta(module, name, parameter):
        if parameter is not None and not parameter.is_meta:
            given = parameter
            parameter = nn.Parameter(given.detach().to("meta"), given.requires_grad)
            if note:
                note(given, parameter)
        register(module, name, parameter)

    nn.Module.register_parameter = register_on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def give_memory(model: nn.Module, device: torch.device) -> None:
    """Allocate a model made `without_weights` on a device; its contents are still undefined.

    Tied parameters stay tied. If the model is sharded, each rank allocates only its share.
    """
    new: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if parameter not in new:
                empty = torch.empty_like(parameter, device=device)
                new[parameter] = nn.Parameter(empty, parameter.requires_grad)
            setattr(module, name, new[parameter])
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


def sharded_model(build: Callable[[], nn.Module], world: World, device: torch.device) -> nn.Module:
    """A sharded model with undefined contents; no rank ever holds the whole model.

    `build` makes a GPT, or another model whose blocks are in transformer.h.
    """
    with without_weights():
        model = build()
    shard_fsdp(model, model.transformer.h, world, device)
    give_memory(model, device)
    return model


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor on every rank (all must call); return any other unchanged."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def rows_of(tensor: Tensor) -> tuple[int, int]:
    """The rows [start, stop) of a sharded tensor that this rank holds."""
    mesh = tensor.device_mesh
    each = -(-tensor.shape[0] // mesh.size())  # as torch.chunk splits; the last ranks may get fewer
    start = min(mesh.get_local_rank() * each, tensor.shape[0])
    return start, min(start + each, tensor.shape[0])


def own_rows(tensor: Tensor, world: World) -> Tensor | None:
    """What this rank has to save of a tensor: its rows if sharded; else rank 0 saves all of it.

    None if it has nothing to save.
    """
    if not hasattr(tensor, "to_local"):
        return tensor.contiguous() if world.is_main else None
    local = tensor.to_local()
    return local.cpu().contiguous() if local.numel() else None


def save_rows(path: Path, tensors: dict[str, Tensor], world: World) -> None:
    """Write what this rank has to save of the tensors into a safetensors file.

    With several ranks its header says where each part begins in the full tensor, in the form that
    torch.distributed.checkpoint reads.
    """
    own = {name: own_rows(tensor, world) for name, tensor in tensors.items()}
    own = {name: rows for name, rows in own.items() if rows is not None}
    header = None
    if world.size > 1:
        first = {n: rows_of(t)[0] if hasattr(t, "to_local") else 0 for n, t in tensors.items()}
        starts = {n: {"saved_offsets": [first[n], 0][: rows.dim()]} for n, rows in own.items()}
        header = {"DCP_SHARDING_INFO": json.dumps(starts, sort_keys=True)}
    save_file(own, path, header)


def copy_rows(tensor: Tensor, read: Callable[[int, int | None], Tensor]) -> None:
    """Fill a tensor, or this rank's rows of a sharded one, from read(start, stop) → rows."""
    with torch.no_grad():
        if not hasattr(tensor, "to_local"):
            tensor.copy_(read(0, None))
        elif (rows := rows_of(tensor))[0] < rows[1]:
            tensor.to_local().copy_(read(*rows))
