"""The training loss of a GPT and nothing else, with less memory traffic on a GPU.

What GPT.forward computes, in two ways better for a compiler. The logits are no result: a result
that no gradient comes back to is given one of zeros, as large as the logits themselves, which is
filled and read in every backward pass. And the padding columns are hidden, not cut off: rows of
50,304 numbers can be read in blocks of 16, rows of 50,257 only one by one.

Shapes: B batch, T time, C channels (n_embd), P padded vocabulary.
"""

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn import functional as F

from nanogpt_lib.config import TrainConfig
from nanogpt_lib.device import compile_model
from nanogpt_lib.distributed import all_reduce_sum, wrap_ddp
from nanogpt_lib.model import GPT
from nanogpt_lib.support.processes import World


class TrainingLoss(nn.Module):
    """A GPT, with its own parameters, that returns (None, loss).

    With `stream`, a dtype, the residual stream is rounded to it instead of kept in float32.
    """

    def __init__(self, gpt: GPT, stream: torch.dtype | None = None):
        super().__init__()
        self.gpt, self.stream = gpt, stream

    def hidden(self, idx: Tensor) -> Tensor:
        """Token ids (B, T) → hidden states (B, T, C), as Transformer.forward computes them."""
        transformer = self.gpt.transformer
        position = torch.arange(idx.size(1), device=idx.device)
        x = transformer.drop(transformer.wte(idx) + transformer.wpe(position))
        for block in transformer.h:
            x = block(x if self.stream is None else x.to(self.stream))
        return transformer.ln_f(x)

    def forward(self, idx: Tensor, targets: Tensor) -> tuple[None, Tensor]:
        """idx, targets: (B, T) → the mean cross entropy in nats."""
        logits = self.gpt.lm_head(self.hidden(idx)).flatten(0, 1).float()  # (B·T, P)
        config = self.gpt.config
        if config.vocab_size < config.padded_vocab_size:
            real = torch.arange(config.padded_vocab_size, device=idx.device) < config.vocab_size
            logits = torch.where(real, logits, float("-inf"))
        return None, F.cross_entropy(logits, targets.flatten())


def training_form(gpt: nn.Module, device: torch.device, parallel: str) -> nn.Module:
    """What train.py compiles: on CUDA the loss alone; with FSDP, or elsewhere, the model itself.

    FSDP gathers the weights when the model itself is called. On a CPU rows are read in other ways.
    """
    alone = device.type == "cuda" and parallel == "ddp" and type(gpt) is GPT
    return TrainingLoss(gpt) if alone else gpt


def compile_for_training(
    gpt: nn.Module,
    config: TrainConfig,
    device: torch.device,
    x: Tensor,
    dtype: torch.dtype,
    world: World = World(),  # noqa: B008 (frozen)
) -> tuple[nn.Module, str]:
    """Compile the model's training form and wrap it in DDP; x (B, T) is a micro-batch to try.

    DDP is put around it before the first call: only then does torch.compile cut the backward pass
    where DDP's buckets end, so that they travel while it computes. Every rank must call this. If
    any rank cannot compile, all train the model itself: the other form would need more memory.
    """

    def wrap(model: nn.Module) -> nn.Module:
        return wrap_ddp(model, world, device) if config.parallel == "ddp" else model

    form = training_form(gpt, device, config.parallel)
    model, done = compile_model(form, config.compile, device, x, x, dtype, wrap=wrap)
    (compiled,) = all_reduce_sum([float(done == "compiled")], world, device)
    if compiled == world.size:
        return model, done
    return wrap(gpt), "not compiled (another rank cannot)" if done == "compiled" else done
