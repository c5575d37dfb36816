"""What this processor can do."""

import platform

import torch


def cpu_is_x86() -> bool:
    """Whether this is an Intel or AMD processor."""
    return platform.machine().lower() in ("x86_64", "amd64")


def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for bf16 products; without them fp32 is faster."""
    if not cpu_is_x86():
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
