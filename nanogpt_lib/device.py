"""What the hardware can do: device, dtype, compilation, and the peak to measure a run against.

Exported from notebooks/05_speedups.ipynb; edit the notebook, not this file.
"""

import contextlib
import re
import statistics
from collections.abc import Callable
from time import perf_counter

import torch
import torch.nn as nn

from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.memory import is_out_of_memory
from nanogpt_lib.support.processor import cpu_multiplies_bfloat16


def detect_device(wanted: str = "auto") -> torch.device:
    """`auto` prefers cuda, then mps, then cpu. Raises UserError for an unavailable device."""
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
    """Wait until the device has finished its queued work; needed before reading the clock."""
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


def allow_tf32() -> None:
    """Let fp32 matrix products use TF32 tensor cores: 10-bit mantissas in, fp32 sums out."""
    torch.set_float32_matmul_precision("high")


def autocast(device: torch.device, dtype: torch.dtype):
    """A context in which matrix products run in dtype; weights and sums stay fp32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device_type=device.type, dtype=dtype)


def choose_dtype(device: torch.device, wanted: str = "auto") -> torch.dtype:
    """The dtype of the matrix products: bf16 where the hardware supports it, else fp16 on CUDA
    (with a gradient scaler), else fp32. Raises UserError for one the device does not support."""
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
        raise UserError("--dtype bfloat16: not supported by this GPU; use float16")
    if wanted == "float16" and device.type == "cpu":
        raise UserError("--dtype float16: not for training on a CPU; use bfloat16 or float32")
    return getattr(torch, wanted)


def compile_model(
    model: nn.Module, wanted: str, device: torch.device, x, y, dtype, mode=None, wrap=None
):
    """Compile for training and try one micro-batch (x, y); return (callable, what was done).

    `auto` compiles on CUDA only. If compilation fails (no C++ compiler, Windows, an old GPU), the
    plain model is returned with the reason. The model itself is unchanged: sampling, evaluation and
    checkpoints use it, with the same weights and without recompilation. `mode` is torch.compile's.
    `wrap` is put around the compiled model before the trial, which then averages no gradients.
    """
    if wanted == "off" or (wanted == "auto" and device.type != "cuda"):
        return model, "not compiled"
    try:  # `wrap` and `no_sync` are chapter 07's: without several processes they do nothing
        compiled = torch.compile(model, mode=mode)
        compiled = wrap(compiled) if wrap else compiled
        with getattr(compiled, "no_sync", contextlib.nullcontext)():
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


# Dense bf16/fp16 matrix products, in TFLOP/s, from the vendors' data sheets (without sparsity).
PEAK_TFLOPS = {
    "GB200": 2500, "B200": 2250, "GH200": 989, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835,
    "H100": 989, "A100": 312, "L40S": 362, "L40": 181, "A10G": 70, "A10": 125, "L4": 121,
    "RTX 5090": 209.5, "RTX 4090": 165.2, "RTX 3090": 71, "T4": 65, "V100": 125,
}  # fmt: skip


def flops_per_token(model: nn.Module) -> int:
    """Floating-point operations per training token: 6 per weight and 12·L·C·T for attention.

    Forward 2 per weight in a matrix product, backward twice that; PaLM paper, appendix B. An
    embedding is only looked up; wte counts because it is also the output head.
    """
    config = model.config
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    return 6 * weights + 12 * config.n_layer * config.n_embd * config.block_size


def peak_flops(device: torch.device) -> float | None:
    """The device's peak in FLOP/s for bf16/fp16 products, from its data sheet; None if unknown."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    if "Laptop" in name:  # named like the desktop card, but slower
        return None
    for card, tera in PEAK_TFLOPS.items():
        if re.search(rf"\b{card}\b", name):  # whole words: an L40 is not an L4
            return tera * 1e12
    return None
