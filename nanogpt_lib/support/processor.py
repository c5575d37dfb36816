"""What this CPU supports."""

import os
import platform

import torch

# values of ONEDNN_MAX_CPU_ISA under which oneDNN has no bf16 products
WITHOUT_BFLOAT16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE") + (
    "AVX512_CORE_VNNI",
)


def cpu_is_x86() -> bool:
    """Whether this is an Intel or AMD processor."""
    return platform.machine().lower() in ("x86_64", "amd64")


def cpu_has(*features: str) -> bool:
    """Whether the CPU has one of these features, named as in torch.cpu.get_capabilities.

    Older versions of PyTorch have private functions instead; without either the answer is no.
    """
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in features)
    asked = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in features)
    return any(function() for function in asked if function)


def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for bf16 products; without them fp32 is faster.

    Two environment variables can hide them, for example to imitate an older machine:
    ATEN_CPU_CAPABILITY for PyTorch's own loops, ONEDNN_MAX_CPU_ISA for the products. On Arm the
    answer is no, because we have not measured it.
    """
    if not (cpu_is_x86() and cpu_has("avx512_bf16", "amx_bf16", "amx_tile")):
        return False
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "ALL"
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return wide and limit.upper() not in WITHOUT_BFLOAT16


def cpu_class() -> str:
    """The class of processor that figures are compared by: avx512_bf16, avx512, avx2, arm, other.

    As this process may use it: the environment can hide what the machine has.
    """
    if platform.machine().lower() in ("arm64", "aarch64"):
        return "arm"
    if cpu_multiplies_bfloat16():
        return "avx512_bf16"
    capability = torch.backends.cpu.get_cpu_capability()
    return {"AVX512": "avx512", "AVX2": "avx2"}.get(capability, "other")
