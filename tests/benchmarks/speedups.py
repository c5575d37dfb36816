"""Variants of the same training step, timed and compared; for bench_speedups.py.

Each of the lecture's speed-ups keeps all earlier ones. Further ones are tried on top of what has
been kept so far, and are kept only if they process more tokens per second.
"""

import gc
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from nanogpt_lib.device import (
    autocast,
    choose_dtype,
    compile_model,
    flops_per_token,
    median_seconds,
    peak_flops,
)
from nanogpt_lib.loader import TokenLoader
from nanogpt_lib.model import GPT, GPTConfig, load_weights
from nanogpt_lib.optimizer import decay_groups, make_optimizer
from nanogpt_lib.recipes.text import write_splits
from nanogpt_lib.shards import TokenStream
from nanogpt_lib.support.memory import is_out_of_memory, keep_freed_memory
from nanogpt_lib.support.read_ahead import ReadAhead
from nanogpt_lib.training_loss import TrainingLoss

CHUNK = 2048  # positions whose logits are in memory together, if the loss is computed in chunks


@dataclass
class Variant:
    """How a step is computed; each speed-up changes one field."""

    name: str = "float32"
    tf32: bool = False
    dtype: torch.dtype = torch.float32
    compile: str = "off"  # or a mode of torch.compile: default, reduce-overhead, max-autotune
    attention: str = "manual"
    kernel: str = ""  # a back end of scaled_dot_product_attention; "": PyTorch chooses
    vocab_multiple: int = 1
    fused: bool = False  # AdamW in one kernel
    loss: str = "logits"  # "alone": TrainingLoss; or "linear": F.linear_cross_entropy, "chunks"
    factor: int = 1  # multiplies the number of rows
    micro_steps: int = 1  # forward and backward passes per update
    narrow: bool = False  # residual stream in dtype, not in float32
    tuned: bool = False  # Inductor also times other launch settings of its kernels
    keep_memory: bool = False  # on a CPU; cannot be undone, so it must come last
    data: str = ""  # "loader": read from disk for every step; "ahead": in a thread


def lecture_variants(device: torch.device, compile: bool) -> list[Variant | str]:
    """The lecture's speed-ups on a device; a string instead of one says why it is missing."""
    variant = Variant()
    variants: list[Variant | str] = [variant]

    def add(name: str, **change) -> None:
        nonlocal variant
        variant = replace(variant, name=name, **change)
        variants.append(variant)

    if device.type == "cuda":
        add("TF32", tf32=True)
    else:
        variants.append("TF32: only NVIDIA GPUs have it")
    fast = choose_dtype(device)
    if fast == torch.float32:
        variants.append("bfloat16: float32 is faster on this device")
    else:
        add(str(fast).removeprefix("torch."), dtype=fast)
    if compile:
        add("torch.compile", compile="default")
    else:
        variants.append("torch.compile: off on this device (--compile tries it)")
    add("fused attention", attention="sdpa")
    add("vocabulary 50304", vocab_multiple=64)
    add("fused AdamW", fused=True)
    return variants


def further_changes(device: torch.device, compile: bool) -> dict[str, dict]:
    """What to try beyond the lecture: name → change to the best variant so far."""
    kernels = ("cudnn", "flash", "efficient") if device.type == "cuda" else ("flash", "math")
    changes = {f"SDPA: {kernel}": dict(kernel=kernel) for kernel in kernels}
    if hasattr(F, "linear_cross_entropy"):
        changes["linear_cross_entropy"] = dict(loss="linear")
    changes["loss in chunks"] = dict(loss="chunks")
    changes["loss alone"] = dict(loss="alone")
    if device.type == "cuda":
        changes["16-bit residual stream"] = dict(narrow=True)
    if compile:
        for mode in ("reduce-overhead", "max-autotune"):  # the first one is CUDA graphs
            changes[f"compile: {mode}"] = dict(compile=mode)
    changes |= {f"rows × {factor}": dict(factor=factor) for factor in (2, 4)}
    changes["8 micro-steps"] = dict(micro_steps=8)
    return changes


class OtherLoss(nn.Module):
    """A GPT, with the same interface, that never holds the logits of all positions at once."""

    def __init__(self, gpt: GPT, kind: str, dtype: torch.dtype):
        super().__init__()
        self.gpt, self.kind, self.dtype = gpt, kind, dtype

    def piece(self, hidden: Tensor, y: Tensor) -> Tensor:
        """Summed loss of some positions; checkpointed, so backward recomputes the logits."""
        logits = self.gpt.lm_head(hidden)[:, : self.gpt.config.vocab_size]
        return F.cross_entropy(logits.float(), y, reduction="sum")

    def forward(self, x: Tensor, y: Tensor) -> tuple[None, Tensor]:
        """x, y: (B, T) → the mean cross entropy in nats."""
        hidden, y = self.gpt.transformer(x).flatten(0, 1), y.flatten()  # (B·T, C), (B·T,)
        if self.kind == "chunks":
            parts = zip(hidden.split(CHUNK), y.split(CHUNK), strict=True)
            total = sum(checkpoint(self.piece, h, t, use_reentrant=False) for h, t in parts)
            return None, total / len(y)
        weight = self.gpt.lm_head.weight[: self.gpt.config.vocab_size]
        size = min(CHUNK, len(y))
        options = nn.LinearCrossEntropyOptions(batch_chunk_size=size, chunking_method=None)
        # autocast does not cover this function: without the casts it would run in float32
        with torch.autocast(x.device.type, enabled=False):
            hidden, weight = hidden.to(self.dtype), weight.to(self.dtype)
            return None, F.linear_cross_entropy(hidden, weight, y, options=options)


def for_training(raw: nn.Module, variant: Variant) -> nn.Module:
    """What computes the loss of a model as the variant says."""
    if variant.loss == "alone":
        return TrainingLoss(raw, variant.dtype if variant.narrow else None)
    if variant.narrow:
        raw.transformer.drop.register_forward_hook(lambda *call: call[-1].to(variant.dtype))
    return raw if variant.loss == "logits" else OtherLoss(raw, variant.loss, variant.dtype)


def attention_kernel(name: str):
    """A context that restricts scaled_dot_product_attention to one back end; "": any."""
    backends = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "math": SDPBackend.MATH,
    }
    return sdpa_kernel(backends[name]) if name else nullcontext()


def tuned_kernels():
    """A context in which Inductor times neighbouring launch settings of each kernel: slow."""
    from torch._inductor import config  # here: it takes seconds to import

    return config.patch(coordinate_descent_tuning=True)


def batches(variant: Variant, config: GPTConfig, rows: int, device: torch.device, folder: Path):
    """A function that returns a micro-batch (x, y): always the same, or a loader's next."""
    T = config.block_size
    torch.manual_seed(1)  # equal batches, however many random numbers the model has used
    tokens = torch.randint(config.vocab_size, (rows * 20 * T + 1,))
    if not variant.data:
        x, y = tokens[: rows * T].view(rows, T), tokens[1 : rows * T + 1].view(rows, T)
        x, y = x.to(device), y.to(device)
        return lambda: (x, y)
    meta = {"name": "noise", "source": "noise", "tokenizer": {"name": "gpt2"}}
    meta["vocab_size"] = config.vocab_size
    write_splits(folder, meta, tokens.numpy(), np.zeros(2, dtype=np.int64))
    loader = TokenLoader(TokenStream(folder, "train"), rows, T)
    if variant.data == "ahead":
        return ReadAhead(loader, device).next_batch
    return lambda: tuple(t.to(device) for t in loader.next_batch())


def row_of(name: str, seconds: float, tokens: int, loss: float, raw: nn.Module, device) -> dict:
    """One row of the table as plain values; with peak memory on CUDA."""
    flops, peak = flops_per_token(raw) * tokens / seconds, peak_flops(device)
    cuda = device.type == "cuda"
    return {
        "name": name,
        "ms": round(seconds * 1e3, 2),
        "tokens": tokens,
        "tokens_per_sec": round(tokens / seconds, 1),
        "gflops": round(flops / 1e9, 1),
        "mfu": round(flops / peak, 4) if peak else None,
        "memory_gb": round(torch.cuda.max_memory_allocated(device) / 1e9, 2) if cuda else None,
        "loss": loss,
        "note": "",
    }


def prepare(variant: Variant, device: torch.device) -> None:
    """Set the seed and PyTorch's global settings, and forget what earlier variants left behind.

    torch.compile keeps at most 8 versions of a function, of whatever model, and then runs it
    uncompiled with no more than a warning.
    """
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high" if variant.tf32 else "highest")
    if variant.keep_memory and not keep_freed_memory():
        raise RuntimeError("not supported by this C library")
    if variant.compile != "off":
        torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.init()  # which the next two expect
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def measure(
    variant: Variant, shape: GPTConfig, rows: int, steps: int, device: torch.device
) -> dict:
    """Time one training step (forward, backward, update): the median after two warm-up steps.

    `loss` is that of the first step: every variant starts with equal weights and, unless its
    rows or data differ, an equal batch.
    """
    prepare(variant, device)
    raw = GPT(replace(shape, attention=variant.attention, vocab_multiple=1))
    raw = padded(raw, variant.vocab_multiple).to(device)
    optimizer = torch.optim.AdamW(decay_groups(raw, 0.1), lr=1e-4, foreach=False)
    if variant.fused:
        optimizer = make_optimizer(raw, learning_rate=1e-4)
    model = for_training(raw, variant)
    losses, note = [], ""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        attention_kernel(variant.kernel),
        tuned_kernels() if variant.tuned else nullcontext(),
    ):
        next_batch = batches(variant, raw.config, rows * variant.factor, device, Path(folder))
        x, y = next_batch()
        if variant.compile != "off":
            mode = None if variant.compile == "default" else variant.compile
            model, note = compile_model(model, "on", device, x, y, variant.dtype, mode)

        def step() -> None:
            for _ in range(variant.micro_steps):
                x, y = next_batch()
                with autocast(device, variant.dtype):
                    _, loss = model(x, y)
                (loss / variant.micro_steps).backward()
            torch.nn.utils.clip_grad_norm_(raw.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if not losses:
                losses.append(loss.item())

        seconds = median_seconds(step, device, repeats=steps, warmup=2)
    tokens = x.numel() * variant.micro_steps
    row = row_of(variant.name, seconds, tokens, losses[0], raw, device)
    return {**row, "note": note if note.startswith("not") else ""}


def padded(gpt: GPT, vocab_multiple: int) -> GPT:
    """The same model with wte padded to a multiple of vocab_multiple rows, with zeros."""
    if vocab_multiple == 1:
        return gpt
    wider = GPT(replace(gpt.config, vocab_multiple=vocab_multiple))
    load_weights(wider, gpt.state_dict())
    return wider


def measure_or_note(
    variant: Variant, shape: GPTConfig, rows: int, steps: int, device
) -> dict | str:
    """`measure`, or one line saying why it failed: out of memory, or no kernel for these sizes."""
    try:
        return measure(variant, shape, rows, steps, device)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            return f"{variant.name}: out of memory"
        return f"{variant.name}: {str(error).strip().splitlines()[0][:80]}"
