"""Weights cut over processes (FSDP): cut them, send them out, and make them whole again."""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator

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


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Modules made in this block have their buffers, but their parameters take no memory.

    They are on the meta device: a shape without contents. See `give_memory`.
    """
    register = nn.Module.register_parameter

    def register_on_meta(module, name, parameter):
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = register_on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def give_memory(model: nn.Module, device: torch.device) -> None:
    """Put a model made `without_weights` on a device; its contents are still to be filled in.

    A parameter that serves in two places still does. Sharded, each rank gets its share only.
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
    """A model in shares, one on each rank, still to be filled in; no rank ever holds the whole.

    `build` makes a GPT, or another model whose blocks are in transformer.h.
    """
    with without_weights():
        model = build()
    shard_fsdp(model, model.transformer.h, world, device)
    give_memory(model, device)
    return model


def send_shares(whole: nn.Module | None, model: nn.Module) -> None:
    """Fill a sharded model from the `whole` one of rank 0, one tensor after another.

    Every rank calls; on the others `whole` is None. A card holds one whole tensor at a time.
    """
    from torch.distributed.tensor import distribute_tensor

    weights = dict(whole.named_parameters()) if whole is not None else {}
    with torch.no_grad():
        for name, share in model.named_parameters():
            device = share.to_local().device
            if name in weights:
                tensor = weights[name].detach().to(device)
            else:
                tensor = torch.empty(share.shape, dtype=share.dtype, device=device)
            # src_data_rank=0: rank 0 cuts and sends, what the others bring is only a shape
            sent = distribute_tensor(tensor, share.device_mesh, share.placements, src_data_rank=0)
            share.to_local().copy_(sent.to_local())


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
    with without_weights():
        plain = kind(model.config)
    give_memory(plain, device)
    with torch.no_grad():
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
