"""Linear layers for inference on a CPU: each weight is cast and packed once, not in every call.

A CPU multiplies fastest with weights in a layout of its own, and in bf16 PyTorch also casts float32
weights in every call. During inference the weights do not change, so oneDNN, the library that
PyTorch multiplies with on x86, can do both once. PyTorch's operators for that are private: if one
is missing or fails, the plain product is used.
"""

import contextlib
import functools
import sys
from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn import functional as F

from nanogpt_lib.support.processor import cpu_is_x86, cpu_multiplies_bfloat16

FUSED_ROWS = 64  # with fewer rows, reading the weights dominates and GELU is free


def pack(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, rows: int) -> tuple:
    """Cast a weight (out, in) and its bias, and pack the weight for inputs of this many rows."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype), rows)
    return packed, None if bias is None else bias.detach().to(dtype)


def packed_product(x: Tensor, packed: tuple, gelu: bool) -> Tensor:
    """x (…, in) times a packed weight plus its bias: (…, out); then GELU (tanh) if `gelu`."""
    activation = ("gelu", [], "tanh") if gelu else ("none", [], "")
    return torch.ops.mkldnn._linear_pointwise(x, *packed, *activation)


@functools.cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether packed products work here in this dtype; tried once, on a tiny product.

    If they should but do not, prints one line on stderr.
    """
    fast = dtype == torch.float32 or (dtype == torch.bfloat16 and cpu_multiplies_bfloat16())
    if not (cpu_is_x86() and torch.backends.mkldnn.is_available() and fast):
        return False  # written for x86; elsewhere plain products are the fastest we know of
    x, weight, bias = (torch.linspace(-1, 1, n).view(-1, 8) for n in (24, 128, 16))
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.flatten().to(dtype)
        plain = F.gelu(F.linear(x, weight, bias), approximate="tanh")
        try:
            fused = packed_product(x, pack(weight, bias, dtype, len(x)), gelu=True)
            reason = "" if torch.allclose(fused, plain, rtol=0.02, atol=0.05) else "wrong results"
        except (RuntimeError, AttributeError, TypeError, NotImplementedError) as error:
            reason = str(error).strip().split("\n")[0][:120]
    if reason:
        name = str(dtype).removeprefix("torch.")
        print(f"no packed weights in {name}, using plain products ({reason})", file=sys.stderr)
    return not reason


class PackedLinear(nn.Module):
    """Replaces one nn.Linear, sharing its parameters; the weight is packed at the first call.

    The dtype is autocast's inside autocast, else the weight's; for each dtype it packs once. While
    gradients are recorded it computes the plain product, and afterwards packs again.
    """

    def __init__(self, linear: nn.Linear, rows: int, gelu: bool = False):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias  # under their usual names
        self.rows, self.gelu = rows, gelu
        self.packed: dict[torch.dtype, tuple] = {}

    def forward(self, x: Tensor) -> Tensor:
        """x: (…, in) → (…, out), after the activation if `gelu`."""
        mixed = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if mixed else self.weight.dtype
        if torch.is_grad_enabled() or not can_pack(dtype):
            self.packed.clear()  # the weights may be about to change
            y = F.linear(x, self.weight, self.bias)
            return F.gelu(y, approximate="tanh") if self.gelu else y
        if dtype not in self.packed:
            self.packed[dtype] = pack(self.weight, self.bias, dtype, self.rows)
        return packed_product(x.to(dtype), self.packed[dtype], self.gelu)


class Swaps:
    """Replacements of modules' children, which can be undone."""

    def __init__(self):
        self.originals: list[tuple[nn.Module, str, nn.Module]] = []

    def swap(self, parent: nn.Module, name: str, stand_in: nn.Module) -> None:
        """Replace the parent's child of this name."""
        self.originals.append((parent, name, parent.get_submodule(name)))
        setattr(parent, name, stand_in)

    def undo(self, keep: int = 0) -> None:
        """Put the originals back, the last one first, all but the first `keep`."""
        while len(self.originals) > keep:
            parent, name, original = self.originals.pop()
            setattr(parent, name, original)


def fuse_gelu(swaps: Swaps, parent: nn.Module, rows: int) -> None:
    """Where a linear child is followed by a tanh GELU, fuse the GELU into its product.

    Being adjacent in the list of children does not mean that `forward` calls them in that order.
    Hence one row is computed with and without fusing; if the results differ, nothing is swapped.
    """
    for (name, linear), (following, gelu) in pairwise(list(parent.named_children())):
        tanh = type(gelu) is nn.GELU and gelu.approximate == "tanh"
        if not (tanh and type(linear) is nn.Linear and linear.weight.device.type == "cpu"):
            continue
        x, before = torch.linspace(-1, 1, linear.in_features)[None], len(swaps.originals)
        try:
            plain = parent(x)
            swaps.swap(parent, name, PackedLinear(linear, rows, gelu=True))
            swaps.swap(parent, following, nn.Identity())
            error, size = (parent(x) - plain).float().norm(), plain.float().norm()
        except Exception:  # it does not take one row of channels
            error, size = 1.0, 0.0
        if not error <= 0.02 * size:
            swaps.undo(keep=before)


@contextlib.contextmanager
def packed_weights(model: nn.Module, rows: int) -> Iterator[nn.Module]:
    """Inside the block, a PackedLinear replaces every nn.Linear in the model that is on the CPU.

    For inference with constant weights; `rows` is the typical number of rows (tokens) per input.
    Names, parameters and ties are unchanged. Training inside the block works, but is no faster. The
    model may be any module; nesting has no further effect.
    """
    swaps = Swaps()
    try:
        if rows >= FUSED_ROWS and not any(module.training for module in model.modules()):
            with torch.inference_mode():
                for parent in list(model.modules()):
                    fuse_gelu(swaps, parent, rows)
        stand_ins: dict[nn.Module, PackedLinear] = {}  # a layer may have several parents
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Linear and child.weight.device.type == "cpu":
                    stand_in = stand_ins.setdefault(child, PackedLinear(child, rows))
                    swaps.swap(parent, name, stand_in)
        yield model
    finally:
        swaps.undo()


@contextlib.contextmanager
def fast_inference(
    model: nn.Module, device: torch.device, dtype: torch.dtype, rows: int
) -> Iterator[nn.Module]:
    """A context for inference: autocast to dtype and, on a CPU that supports it, packed weights."""
    lower = dtype != torch.float32
    cast = torch.autocast(device.type, dtype) if lower else contextlib.nullcontext()
    packed = device.type == "cpu" and can_pack(dtype)
    with cast, packed_weights(model, rows) if packed else contextlib.nullcontext(model):
        yield model
