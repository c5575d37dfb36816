"""Validation loss: a number that depends only on the model and the data.

Exported from notebooks/09_hellaswag.ipynb; edit the notebook, not this file.
"""

import torch

from nanogpt_lib.device import autocast
from nanogpt_lib.distributed import all_reduce_sum
from nanogpt_lib.model import GPT
from nanogpt_lib.shards import TokenStream
from nanogpt_lib.support.evaluating import evaluating
from nanogpt_lib.support.processes import World


@torch.inference_mode()
def validation_loss(
    model: GPT,
    stream: TokenStream,
    *,
    tokens: int,
    batch_size: int,
    world: World = World(),  # noqa: B008 (frozen)
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> float:
    """Mean cross entropy in nats per token over the first `tokens` tokens of a stream.

    The windows are always the same. They are distributed over the processes and their losses
    summed, so neither world size nor batch size changes the result. Only whole windows are read: a
    budget is rounded down to them, and so is a stream shorter than `tokens`.
    """
    device = torch.device(device)
    T = min(model.config.block_size, len(stream) - 1)
    windows = max(1, min(tokens, len(stream) - 1) // T)
    mine = range(world.rank, windows, world.size)
    total, count = 0.0, 0
    with evaluating(model), autocast(device, dtype):
        for first in range(0, len(mine), batch_size):
            rows = [stream.read(w * T, T + 1) for w in mine[first : first + batch_size]]
            batch = torch.stack([torch.from_numpy(row) for row in rows]).to(device)
            x, y = batch[:, :-1], batch[:, 1:]
            _, loss = model(x, y)
            total += loss.item() * y.numel()
            count += y.numel()
    total, count = all_reduce_sum([total, float(count)], world, device)
    return total / count
