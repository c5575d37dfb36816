"""Linear layers for inference on a CPU: each weight is cast and packed once, not in every call.

A CPU multiplies fastest with weights in a layout of its own, and in bf16 PyTorch also casts float32
weights in every call. During inference the weights do not change, so both can be done once. Which
layouts there are, and what each is good for: weight_formats.py. Where one does not work, the plain
product is used.
"""

import contextlib
from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn import functional as F

from nanogpt_lib.support.weight_formats import FORMATS, works

FUSED_ROWS = 64  # with fewer rows, reading the weights dominates and GELU is free


def name_of(dtype: torch.dtype) -> str:
    """float32 for torch.float32."""
    return str(dtype).removeprefix("torch.")


class PackedLinear(nn.Module):
    """Replaces one nn.Linear, sharing its parameters; the weight is packed at the first call.

    The dtype is autocast's inside autocast, else the weight's; for each format it packs once. While
    gradients are recorded it computes the plain product, and afterwards packs again.
    """

    def __init__(self, linear: nn.Linear, rows: int, weights="float32", gelu: bool = False):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias  # under their usual names
        self.rows, self.weights, self.gelu = rows, weights, gelu
        self.packed: dict[str, tuple] = {}

    def choose(self, dtype: torch.dtype, rows: int) -> str | None:
        """The format for a product with this many rows; None: the plain product."""
        if torch.is_grad_enabled():
            self.packed.clear()  # the weights may be about to change
            return None
        if dtype == torch.float16:  # the format of this name is for float32 inputs
            return None
        name = name_of(dtype)
        if dtype == torch.float32 and self.weights != "float32":
            name = self.weights
        elif dtype == torch.float32 and self.rows == 1 and works("columns"):
            name = "columns"
        # longer inputs, such as a prompt, are too rare to be worth another packed copy
        return name if works(name) and rows <= FORMATS[name].rows else None

    def forward(self, x: Tensor) -> Tensor:
        """x: (…, in) → (…, out), after the activation if `gelu`."""
        mixed = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if mixed else self.weight.dtype
        name = self.choose(dtype, x.numel() // x.size(-1))
        if name is None:
            y = F.linear(x, self.weight, self.bias)
            return F.gelu(y, approximate="tanh") if self.gelu else y
        form = FORMATS[name]
        if name not in self.packed:
            bias = None if self.bias is None else self.bias.detach()
            self.packed[name] = form.pack(self.weight.detach(), bias, dtype, self.rows)
        return form.product(x.to(dtype), self.packed[name], self.gelu)


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
def packed_weights(model: nn.Module, rows: int, weights: str = "float32") -> Iterator[nn.Module]:
    """Inside the block, a PackedLinear replaces every nn.Linear in the model that is on the CPU.

    For inference with constant weights; `rows` is the typical number of rows (tokens) per input,
    `weights` what float32 weights are stored as. Names, parameters and ties are unchanged. Training
    inside the block works, but is no faster. The model may be any module; nesting has no further
    effect.
    """
    swaps = Swaps()
    weights = weights if works(weights) else "float32"
    try:
        if rows >= FUSED_ROWS and not any(module.training for module in model.modules()):
            with torch.inference_mode():
                for parent in list(model.modules()):
                    fuse_gelu(swaps, parent, rows)
        stand_ins: dict[nn.Module, PackedLinear] = {}  # a layer may have several parents
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Linear and child.weight.device.type == "cpu":
                    stand_in = stand_ins.setdefault(child, PackedLinear(child, rows, weights))
                    swaps.swap(parent, name, stand_in)
        yield model
    finally:
        swaps.undo()


@contextlib.contextmanager
def fast_inference(
    model: nn.Module, device: torch.device, dtype: torch.dtype, rows: int, weights: str = "float32"
) -> Iterator[nn.Module]:
    """A context for inference: autocast to dtype and, on a CPU that supports it, packed weights.

    With `weights` float16 or int8, float32 weights on a CPU are rounded, and read in less time.
    """
    lower = dtype != torch.float32
    cast = torch.autocast(device.type, dtype) if lower else contextlib.nullcontext()
    able = works(name_of(dtype)) or (not lower and works(weights))
    packed = device.type == "cpu" and able
    with cast, packed_weights(model, rows, weights) if packed else contextlib.nullcontext(model):
        yield model
