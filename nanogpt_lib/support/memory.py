"""How much memory a training step needs, how much there is, and what to try when it runs out."""

import contextlib
import ctypes
import functools
import os
import platform
from pathlib import Path

import torch
import torch.nn as nn

from nanogpt_lib.support.processor import cpu_multiplies_bfloat16


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means out of memory: CUDA has its own exception, others only a message."""
    texts = ("can't allocate memory", "not enough memory", "backend out of memory")
    named = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return named or any(text in str(error) for text in texts)


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory, as PyTorch does on a GPU; for programs on a CPU.

    By default glibc returns freed blocks over 32 MB to the system, and new ones are faulted in page
    by page, zeroed. Afterwards it does so only above 1 GiB (old versions: never). Peak memory grows
    by up to 40 %, and the process keeps what it once used. Returns whether glibc accepted it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if platform.system() == "Linux" else None
    if mallopt is None:
        return False
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # the options' numbers in malloc.h
    # old versions reject thresholds over 32 MB, but allow switching such blocks off
    told = mallopt(mmap_threshold, 2**30) or mallopt(mmap_max, 0)
    return bool(told and mallopt(trim_threshold, -1))  # never return it


def return_freed_memory() -> bool:
    """Let the C library return freed blocks over 1 MB to the system; for sharded runs on a CPU.

    By default glibc soon keeps blocks of up to 32 MB, and what FSDP gathers and frees leaves holes:
    four ranks of a model of 76M parameters then needed 1.7 times as much. Returns whether glibc
    accepted it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if platform.system() == "Linux" else None
    mmap_threshold = -3  # the option's number in malloc.h
    return bool(mallopt and mallopt(mmap_threshold, 2**20))


def training_bytes(
    model: nn.Module,
    rows: int,
    dtype: torch.dtype,
    optimizer_bytes: int | None = None,
    ranks: int = 1,
) -> int:
    """Peak memory of a training step on rows × block_size tokens, in bytes; without dropout.

    The peak is at the start of the backward pass: weights, gradients of earlier micro-batches, the
    optimizer's state (`optimizer_bytes`; by default AdamW's, the largest), saved activations, and
    the loss with its gradient. `ranks` above 1: per rank, sharded over so many (FSDP).
    """
    config, fp32 = model.config, 4
    size = 4 if dtype == torch.float32 else 2  # of an input or output of a matrix product
    C, V, heads = config.n_embd, config.vocab_size, config.n_head
    parameters = sum(p.numel() for p in model.parameters())
    products = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    copies = 0 if size == fp32 else size * products  # autocast's copies
    if optimizer_bytes is None:
        optimizer_bytes = 2 * fp32 * parameters
    # what a layer saves, per token
    norms = 2 * (fp32 * C + 2 * fp32)  # for each: its input, mean and 1/deviation
    inputs = C + C + C + 4 * C  # of c_attn, attention's c_proj, c_fc and the MLP's c_proj
    between = 3 * C + 4 * C  # q, k and v; GELU's input
    attention = fp32 * heads  # SDPA's logarithm of each row's sum
    if config.attention == "manual":  # also softmax's result, and its copy in dtype for att @ v
        copy = 0 if size == fp32 else size
        attention += heads * config.block_size * (fp32 + copy)
    layer = norms + size * (inputs + between) + attention
    # what the head saves, per token: the final norm's input, its own input, the log-probabilities
    head = fp32 * C + size * C + fp32 * V
    # then the backward pass begins with the logits and twice the gradient of the log-probabilities;
    # with a small vocabulary the last MLP's need is larger: 4·C gradients, twice if in 2 bytes
    # (but once on a CPU that does not multiply bfloat16)
    on_cpu = next(model.parameters()).device.type == "cpu"
    once = size < fp32 and on_cpu and not cpu_multiplies_bfloat16()
    gradients = 4 * C * (size if once else fp32)
    loss = max(size * config.padded_vocab_size + 2 * fp32 * V, gradients)
    tokens = rows * config.block_size
    fixed = 2 * fp32 * parameters + optimizer_bytes
    step = copies + tokens * (config.n_layer * layer + head + loss)
    return fixed + step if ranks == 1 else -(-fixed // ranks) + sharded_step_bytes(model, step)


def sharded_step_bytes(model: nn.Module, step: int) -> int:
    """What a step takes beside a rank's share, if it takes `step` bytes with plain weights.

    In addition wte, wpe and ln_f are gathered, and of the blocks, at the peak, the equivalent of
    three to five, as the ranks happen to wait for each other (five are counted): weights and
    gradients, each once more in a buffer for sending. Autocast's copies of all weights are not
    sharded. At the end of the backward pass, when the activations are free, wte takes four times
    its size: itself, its gradients as table and as head, and a buffer.
    """
    size = 4 * sum(p.numel() for p in model.parameters())
    blocks = [4 * sum(p.numel() for p in block.parameters()) for block in model.transformer.h]
    outside = size - sum(blocks)
    return max(step + outside + 5 * max(blocks), 4 * outside)


def cgroup_limit(
    root: str | Path = "/sys/fs/cgroup", own: str | Path = "/proc/self/cgroup"
) -> int | None:
    """The memory limit in bytes that a Linux cgroup (a container) sets this process; or None.

    `own` names the process's cgroup, in version 2 after "0::", in version 1 after "N:memory:". The
    limits of all its ancestors apply too, so the smallest counts. In a container the path may be
    the host's, of which only the last part is visible under `root`, or only the root itself.
    """
    try:
        lines = Path(own).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    limits = []
    for line in lines:
        number, kinds, path = (line.split(":", 2) + ["", ""])[:3]
        if number == "0" and not kinds:
            places, name = [Path(root), Path(root, "unified")], "memory.max"
        elif "memory" in kinds.split(","):
            places, name = [Path(root, "memory"), Path(root)], "memory.limit_in_bytes"
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for place in places:
            for depth in range(len(parts) + 1):
                with contextlib.suppress(OSError, ValueError):  # "max" means no limit
                    text = place.joinpath(*parts[:depth], name).read_text(encoding="ascii")
                    limits.append(int(text))
    return min(limits, default=None)


def installed_memory() -> int | None:
    """Bytes of RAM in this machine; None if unknown."""
    if platform.system() == "Windows":
        return windows_memory()
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


class MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of Windows."""

    _fields_ = [
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("physical", ctypes.c_uint64),
        *((name, ctypes.c_uint64) for name in "abcdef"),  # six fields we do not need
    ]


def windows_memory() -> int | None:
    """Bytes of RAM according to Windows."""
    status = MemoryStatus(length=ctypes.sizeof(MemoryStatus))
    kernel = getattr(getattr(ctypes, "windll", None), "kernel32", None)
    if kernel is None or not kernel.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return status.physical


def memory_bytes(device: torch.device) -> int | None:
    """The memory available to a run on this device, in bytes; None if unknown.

    On CUDA what is free or already reserved by us; on a CPU the machine's RAM or, if that is less,
    the container's limit.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    known = [size for size in (installed_memory(), cgroup_limit()) if size is not None]
    return min(known, default=None)


def rows_that_fit(
    model: nn.Module,
    dtype: torch.dtype,
    memory: float,
    step_rows: int,
    optimizer_bytes: int | None = None,
    ranks: int = 1,
) -> int:
    """The largest micro-batch that divides step_rows and fits into `memory` bytes; 0 if none does.

    A tenth is left for fragmentation and the libraries' own buffers.
    """
    options = dict(dtype=dtype, optimizer_bytes=optimizer_bytes, ranks=ranks)
    need = functools.partial(training_bytes, model, **options)
    divisors = (n for n in range(step_rows, 0, -1) if step_rows % n == 0)
    return next((n for n in divisors if need(rows=n) <= 0.9 * memory), 0)


def rows_to_try(
    model: nn.Module,
    dtype: torch.dtype,
    memory: float | None,
    step_rows: int,
    rows: int,
    optimizer_bytes: int | None = None,
    ranks: int = 1,
) -> int:
    """The micro-batch to try after `rows` ran out of memory; 0 if there is no smaller one.

    If the formula said that `rows` fit, less memory is free than it seems: then try half.
    """
    smaller = [n for n in range(rows - 1, 0, -1) if step_rows % n == 0]
    needed = training_bytes(model, rows, dtype, optimizer_bytes, ranks)
    expected = memory is None or needed <= 0.9 * memory
    limit = rows // 2
    if not expected:
        limit = max(1, rows_that_fit(model, dtype, memory, step_rows, optimizer_bytes, ranks))
    return next((n for n in smaller if n <= limit), 0)


def peak_memory(device: torch.device) -> int | None:
    """The most memory this process has used so far, in bytes: on CUDA the card's; None if unknown.

    On CUDA it is what PyTorch has reserved, which is a little more than the tensors.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if platform.system() == "Darwin" else 1024)
