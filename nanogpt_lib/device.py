"""What the machine can do: device, number format, compilation, and how much of it a run uses.

Exported from notebooks/05_speedups.ipynb; edit the notebook, not this file.
"""

import contextlib
import ctypes
import os
import platform
import re
import statistics
from collections.abc import Callable, Iterable
from time import perf_counter

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from nanogpt_lib.config import UserError


def detect_device(wanted: str = "auto") -> torch.device:
    """`auto` takes cuda, then mps, then cpu. Raises UserError for a device that is not there."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    if not available.get(wanted.split(":")[0], False):
        have = ", ".join(name for name, there in available.items() if there)
        raise UserError(f"--device {wanted}: not available here (this machine has: {have})")
    return torch.device(wanted)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given: before every look at the clock."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def median_seconds(
    function: Callable[[], object], device: torch.device, repeats: int = 5, warmup: int = 1
) -> float:
    """Seconds one call takes: the median of `repeats` calls after `warmup` unmeasured ones."""
    seconds = []
    for _ in range(warmup + repeats):
        synchronize(device)
        start = perf_counter()
        function()
        synchronize(device)
        seconds.append(perf_counter() - start)
    return statistics.median(seconds[warmup:])


def cpu_is_x86() -> bool:
    """Whether this is an Intel or AMD processor."""
    return platform.machine().lower() in ("x86_64", "amd64")


def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for bf16 products; without them fp32 is faster."""
    if not cpu_is_x86():
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def choose_dtype(device: torch.device, wanted: str = "auto") -> torch.dtype:
    """The number format of the matrix products: bf16 where the hardware multiplies it, else fp16 on
    CUDA (with a gradient scaler), else fp32. Raises UserError for one the device cannot do."""
    if wanted not in ("auto", "float32", "bfloat16", "float16"):
        raise UserError(f"--dtype {wanted}: choose auto, float32, bfloat16 or float16")
    can_bf16 = {
        "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
        "cpu": cpu_multiplies_bfloat16,
        "mps": lambda: True,
    }[device.type]()
    if wanted == "auto":
        if device.type == "mps":
            return torch.float32  # slower than bf16 there, but exact everywhere
        if can_bf16:
            return torch.bfloat16
        return torch.float16 if device.type == "cuda" else torch.float32
    if wanted == "bfloat16" and device.type == "cuda" and not can_bf16:
        raise UserError("--dtype bfloat16: this GPU cannot multiply it; use float16")
    if wanted == "float16" and device.type == "cpu":
        raise UserError("--dtype float16: not for training on a CPU; use bfloat16 or float32")
    return getattr(torch, wanted)


def allow_tf32() -> None:
    """Let fp32 matrix products use TF32 tensor cores: 10 bits of mantissa in, fp32 sums."""
    torch.set_float32_matmul_precision("high")


def autocast(device: torch.device, dtype: torch.dtype):
    """A context in which matrix products run in dtype; weights and sums stay fp32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device_type=device.type, dtype=dtype)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: on CUDA a class of its own, elsewhere a text."""
    texts = ("can't allocate memory", "not enough memory", "backend out of memory")
    named = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return named or any(text in str(error) for text in texts)


def compile_model(model: nn.Module, wanted: str, device: torch.device, x, y, dtype, mode=None):
    """Compile for training, tried on one micro-batch (x, y); return (callable, what was done).

    `auto` compiles on CUDA only. If compilation fails (no C++ compiler, Windows, an old GPU), the
    plain model is returned with the reason. The model itself stays as it is: sampling, evaluation
    and checkpoints use it, share its weights and never see a recompilation. `mode` is PyTorch's.
    """
    if wanted == "off" or (wanted == "auto" and device.type != "cuda"):
        return model, "not compiled"
    try:
        compiled = torch.compile(model, mode=mode)
        with autocast(device, dtype):
            _, loss = compiled(x, y)
        loss.backward()
        result = compiled, "compiled"
    except Exception as error:
        if is_out_of_memory(error):  # the plain model would need more
            raise
        first = str(error).strip().split("\n")[0][:120]
        result = model, f"not compiled ({type(error).__name__}: {first})"
    model.zero_grad(set_to_none=True)
    return result


class PackedLinear(TorchFunctionMode):
    """While it is entered, linear layers run through oneDNN with weights arranged once.

    For inference on a CPU, on weights that stay as they are; `rows` is the number of rows the
    inputs will have. The format is autocast's inside autocast, else that of the weights. After the
    weights in `gelu_after` a GELU (tanh) follows, which oneDNN computes while it has the sums.
    """

    def __init__(self, rows: int, gelu_after: Iterable[Tensor] = ()):
        super().__init__()
        self.rows, self.packed = rows, {}
        self.gelu_after = {weight.data_ptr() for weight in gelu_after}
        self.activated = None  # the last output that has its GELU already

    def pack(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> tuple:
        """Cast and rearrange a weight (out, in)."""
        weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype), self.rows)
        return weight, None if bias is None else bias.to(dtype)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Called by PyTorch in place of every function: linear is replaced, others pass."""
        if function is F.gelu and args[0] is self.activated:
            return self.activated
        if function is not F.linear:
            return function(*args, **(kwargs or {}))
        x, weight, bias = (*args, None)[:3]
        mixed = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if mixed else weight.dtype
        key = (weight.data_ptr(), dtype)
        if key not in self.packed:
            self.packed[key] = self.pack(weight, bias, dtype)
        gelu = weight.data_ptr() in self.gelu_after
        then = ("gelu", [], "tanh") if gelu else ("none", [], "")
        y = torch.ops.mkldnn._linear_pointwise(x.to(dtype), *self.packed[key], *then)
        self.activated = y if gelu else None
        return y


@contextlib.contextmanager
def fast_products(
    device: torch.device, dtype: torch.dtype, rows: int, gelu_after: Iterable[Tensor] = ()
):
    """The context for inference: autocast to dtype and, on x86 CPUs that can, packed weights."""
    onednn = cpu_is_x86() and torch.backends.mkldnn.is_available()
    able = dtype == torch.float32 or cpu_multiplies_bfloat16()
    packs = device.type == "cpu" and onednn and able
    packed = PackedLinear(rows, gelu_after) if packs else contextlib.nullcontext()
    with autocast(device, dtype), packed:
        yield


# Dense bf16/fp16 matrix products, in TFLOP/s, from the makers' data sheets (without sparsity).
PEAK_TFLOPS = {
    "GB200": 2500, "B200": 2250, "GH200": 989, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835,
    "H100": 989, "A100": 312, "L40S": 362, "L40": 181, "A10G": 70, "A10": 125, "L4": 121,
    "RTX 5090": 209.5, "RTX 4090": 165.2, "RTX 3090": 71, "T4": 65, "V100": 125,
}  # fmt: skip


def flops_per_token(model: nn.Module) -> int:
    """Floating-point operations per training token: 6 per weight and 12·L·C·T for attention.

    Forward 2 per weight in a matrix product, backward twice that; PaLM paper, appendix B. The
    embedding wpe is only looked up; wte counts because it is also the output head.
    """
    config = model.config
    weights = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    weights -= model.transformer.wpe.weight.numel()
    return 6 * weights + 12 * config.n_layer * config.n_embd * config.block_size


def peak_flops(device: torch.device) -> float | None:
    """The device's peak in FLOP/s for bf16/fp16 products, from its data sheet; None if unknown."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    if "Laptop" in name:  # the same name as the desktop card, less power
        return None
    for card, tera in PEAK_TFLOPS.items():
        if re.search(rf"\b{card}\b", name):  # whole words: an L40 is no L4
            return tera * 1e12
    return None


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
