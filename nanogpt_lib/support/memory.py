"""How much memory a training step needs, how much there is, and what to try when it ran out."""

import ctypes
import os
import platform

import torch
import torch.nn as nn


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: on CUDA a class of its own, elsewhere a text."""
    texts = ("can't allocate memory", "not enough memory", "backend out of memory")
    named = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return named or any(text in str(error) for text in texts)


def keep_freed_memory() -> bool:
    """Let the C library keep what tensors free, as PyTorch does on a GPU; for programs on a CPU.

    glibc hands blocks over 32 MB back, and new ones come page by page, zeroed; from now on only
    those over 1 GiB (old versions: none). The peak grows by up to 40 %, and what was used once
    stays with the process. Returns whether there is a glibc to be told.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if platform.system() == "Linux" else None
    if mallopt is None:
        return False
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # the options' numbers in malloc.h
    # old versions allow no threshold over 32 MB, but forbidding such blocks altogether
    told = mallopt(mmap_threshold, 2**30) or mallopt(mmap_max, 0)
    return bool(told and mallopt(trim_threshold, -1))  # never hand back


def training_bytes(model: nn.Module, rows: int, dtype: torch.dtype) -> int:
    """Most memory a training step of rows × block_size tokens holds, in bytes; without dropout.

    The peak is at the start of the backward pass: weights, gradients of earlier micro-batches,
    AdamW's two averages, what the forward pass saved, and the loss with its gradient.
    """
    config, size = model.config, 4 if dtype == torch.float32 else 2
    C, V = config.n_embd, config.vocab_size
    parameters = sum(p.numel() for p in model.parameters())
    products = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    products -= model.transformer.wpe.weight.numel()
    # per token: two inputs of norms in fp32; inputs of the four products, q, k, v and GELU's input
    layer = 2 * C * 4 + 14 * C * size + 16 + 4 * config.n_head
    if config.attention == "manual":  # softmax in fp32 and, for the product with v, in dtype
        layer += config.n_head * config.block_size * (4 if size == 4 else 4 + size)
    head = C * 4 + C * size + 4 * V  # final norm, head, log-probabilities
    # logits, and twice the gradient of the log-probabilities; or the backward of the last MLP
    loss = max(config.padded_vocab_size * size + 8 * V, 16 * C)
    tokens = rows * config.block_size
    copies = 0 if size == 4 else size * products  # autocast's own
    return 16 * parameters + copies + tokens * (config.n_layer * layer + head + loss)


def memory_bytes(device: torch.device) -> int | None:
    """The memory a run can have on this device: on CUDA what is free or ours; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    if not hasattr(os, "sysconf"):  # Windows
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def rows_that_fit(model: nn.Module, dtype: torch.dtype, memory: float, step_rows: int) -> int:
    """The largest micro-batch that divides step_rows and fits into `memory` bytes; 0 if none does.

    A tenth is left for the allocator's gaps and the libraries' own buffers.
    """
    divisors = (n for n in range(step_rows, 0, -1) if step_rows % n == 0)
    return next((n for n in divisors if training_bytes(model, n, dtype) <= 0.9 * memory), 0)


def rows_to_try(
    model: nn.Module, dtype: torch.dtype, memory: float | None, step_rows: int, rows: int
) -> int:
    """The micro-batch to try after `rows` ran out of memory; 0 if there is no smaller one.

    Raised in spite of the formula, the error says that less is there than it seems: then half.
    """
    smaller = [n for n in range(rows - 1, 0, -1) if step_rows % n == 0]
    expected = memory is None or training_bytes(model, rows, dtype) <= 0.9 * memory
    limit = rows // 2 if expected else max(1, rows_that_fit(model, dtype, memory, step_rows))
    return next((n for n in smaller if n <= limit), 0)
