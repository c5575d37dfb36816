"""How a CPU can store the weights of a linear layer, and the products with each format.

A product with one row, as in sampling, waits for memory: it reads every weight once and does two
operations with it. Fewer bytes, read in a better order, are faster. With many rows, as in scoring,
arithmetic is the limit. A weight is packed once and used in many products:

    format    bytes rows  how                                        rounds
    float32     4   any   oneDNN's layout                            nothing
    bfloat16    2   any   oneDNN's layout, bf16 products             weights and inputs to 8 bits
    columns     4   one   blocks of 192 outputs, read end to end     nothing
    float16     2   any   FBGEMM, float32 inputs and sums            weights to 11 bits
    int8        1   few   as columns; a range per 192 weights        weights to 1/255 of the range

oneDNN and FBGEMM are libraries behind PyTorch. Most of the operators are private, and all of this
was measured on x86 only: `works` tries a format once, and says so if it has to do without.
"""

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nanogpt_lib.support.processor import cpu_is_x86, cpu_multiplies_bfloat16

BLOCK = 192  # outputs per block: 24 registers of AVX2, 12 of AVX-512; wider or narrower is slower


def onednn_pack(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, rows: int) -> tuple:
    """Cast a weight (out, in) and its bias; arrange the weight for inputs of this many rows."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype), rows)
    return packed, None if bias is None else bias.to(dtype)


def onednn_product(x: Tensor, packed: tuple, gelu: bool) -> Tensor:
    """x (…, in) times the weight plus the bias: (…, out); then GELU (tanh) if `gelu`."""
    activation = ("gelu", [], "tanh") if gelu else ("none", [], "")
    return torch.ops.mkldnn._linear_pointwise(x, *packed, *activation)


def float16_pack(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, rows: int) -> tuple:
    """Round the weight to float16; the bias stays as it is."""
    return (torch.ops.quantized.linear_prepack_fp16(weight.float(), bias),)


def float16_product(x: Tensor, packed: tuple, gelu: bool) -> Tensor:
    """As onednn_product, with float32 inputs, sums and outputs."""
    y = torch.ops.quantized.linear_dynamic_fp16(x.contiguous(), *packed)
    return F.gelu(y, approximate="tanh") if gelu else y


@dataclass
class Columns:
    """A weight (out, in) as a table of `parts` × in rows, each with one block of outputs.

    The product is then a sum of the table's rows, weighted by the input: an embedding bag per block
    of outputs, whose kernel reads the table from end to end and adds in registers. The table may
    hold 8-bit rows, each with its own scale and offset.
    """

    table: Tensor
    bias: Tensor | None
    inputs: int
    outputs: int

    def bags(self, rows: int) -> tuple[Tensor, Tensor]:
        """Indices of the table's rows for every (block, input row), and where each bag begins."""
        parts = len(self.table) // self.inputs
        first = torch.arange(parts, dtype=torch.int32)[:, None, None] * self.inputs
        bag = first + torch.arange(self.inputs, dtype=torch.int32)  # (parts, 1, inputs)
        starts = torch.arange(parts * rows, dtype=torch.int32) * self.inputs
        return bag.expand(-1, rows, -1).flatten(), starts

    def __post_init__(self):
        self.bags = functools.cache(self.bags)  # the same at every call


def columns_pack(
    weight: Tensor, bias: Tensor | None, dtype: torch.dtype, rows: int, int8: bool = False
) -> tuple:
    """Cut the outputs into equal blocks of at most 192 (padded with zeros) and transpose."""
    outputs, inputs = weight.shape
    parts = -(-outputs // BLOCK)
    block = -(-outputs // (16 * parts)) * 16
    padded = F.pad(weight.float(), (0, 0, 0, parts * block - outputs))
    table = padded.view(parts, block, inputs).transpose(1, 2).reshape(parts * inputs, block)
    if int8:
        table = torch.ops.quantized.embedding_bag_byte_prepack(table)
    return (Columns(table, bias, inputs, outputs),)


def columns_product(x: Tensor, packed: tuple, gelu: bool, int8: bool = False) -> Tensor:
    """As onednn_product, for few rows; float32 inputs, sums and outputs."""
    columns = packed[0]
    rows = x.numel() // columns.inputs
    indices, starts = columns.bags(rows)
    parts = len(starts) // rows
    factors = x.reshape(1, rows, -1).expand(parts, -1, -1).reshape(-1)
    if int8:
        y = torch.ops.quantized.embedding_bag_byte_rowwise_offsets(
            columns.table, indices, starts, False, 0, False, factors, None, False
        )
    else:
        y = F.embedding_bag(indices, columns.table, starts, mode="sum", per_sample_weights=factors)
    y = y.view(parts, rows, -1).transpose(0, 1).reshape(rows, -1)[:, : columns.outputs]
    y = y.reshape(*x.shape[:-1], columns.outputs)
    y = y if columns.bias is None else y + columns.bias
    return F.gelu(y, approximate="tanh") if gelu else y


def has_onednn() -> bool:
    """Whether oneDNN's layout is expected to be the fastest: written for x86."""
    return cpu_is_x86() and torch.backends.mkldnn.is_available()


def has_bfloat16() -> bool:
    """Whether oneDNN's bf16 products are faster here than float32."""
    return has_onednn() and cpu_multiplies_bfloat16()


def has_fbgemm() -> bool:
    """Whether PyTorch has FBGEMM's kernels and this processor runs them (x86 from AVX2 on)."""
    return cpu_is_x86() and "fbgemm" in torch.backends.quantized.supported_engines


@dataclass(frozen=True)
class Format:
    """One way to store weights: pack(weight, bias, dtype, rows), product(x, packed, gelu)."""

    dtype: torch.dtype  # of inputs and outputs
    rows: int  # products with more rows are computed otherwise
    expected: Callable[[], bool]
    pack: Callable[..., tuple]
    product: Callable[..., Tensor]


ANY = sys.maxsize
int8_pack = functools.partial(columns_pack, int8=True)
int8_product = functools.partial(columns_product, int8=True)
FORMATS = {
    "float32": Format(torch.float32, ANY, has_onednn, onednn_pack, onednn_product),
    "bfloat16": Format(torch.bfloat16, ANY, has_bfloat16, onednn_pack, onednn_product),
    "columns": Format(torch.float32, 1, has_fbgemm, columns_pack, columns_product),
    "float16": Format(torch.float32, ANY, has_fbgemm, float16_pack, float16_product),
    "int8": Format(torch.float32, 4, has_fbgemm, int8_pack, int8_product),
}
LOSSY = ("float16", "int8")  # only if the user asks for them


@functools.cache
def works(name: str) -> bool:
    """Whether products in this format work here; tried once, on a tiny product.

    Prints one line on stderr if they should but do not, or if the user asked for the format.
    """
    form = FORMATS.get(name)
    if form is None or not (form.expected() or name in LOSSY):
        return False
    reason = try_out(form) if form.expected() else "needs an x86 processor and FBGEMM"
    if reason:
        print(f"no packed weights in {name}, using plain products ({reason})", file=sys.stderr)
    return not reason


def try_out(form: Format) -> str:
    """Compare a tiny product with the plain one; return what is wrong, '' if nothing."""
    x, weight, bias = (torch.linspace(-1, 1, n).view(-1, 8) for n in (24, 128, 16))
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        x, weight, bias = (t.to(form.dtype) for t in (x, weight, bias.flatten()))
        plain = F.gelu(F.linear(x, weight, bias), approximate="tanh")
        try:
            packed = form.pack(weight, bias, form.dtype, len(x))
            fused = form.product(x, packed, gelu=True)
            return "" if torch.allclose(fused, plain, rtol=0.02, atol=0.05) else "wrong results"
        except (RuntimeError, AttributeError, TypeError, NotImplementedError) as error:
            return str(error).strip().split("\n")[0][:120]


def rounded(weight: Tensor, name: str) -> Tensor:
    """A weight (out, in) as this format stores it, in float32: its product with the identity."""
    form, inputs = FORMATS[name], weight.size(1)
    with torch.inference_mode():
        packed = form.pack(weight, None, form.dtype, 1)
        rows = torch.eye(inputs, dtype=form.dtype).split(min(inputs, form.rows))
        return torch.cat([form.product(x, packed, gelu=False).float() for x in rows]).T
