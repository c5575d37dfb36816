"""What support/weight_formats.py promises: each format's product, or one line that says why not."""

import types

import pytest
import torch
from torch.nn import functional as F

from nanogpt_lib.support import weight_formats
from nanogpt_lib.support.weight_formats import BLOCK, FORMATS, LOSSY, rounded, works

# relative error of a product: rounding of sums; bf16: 8 bits of weights and inputs;
# float16: 11 bits of the weights; int8: a range of about 6 standard deviations in 255 steps
ERROR = {"float32": 1e-5, "columns": 1e-5, "bfloat16": 1e-2, "float16": 2e-3, "int8": 1e-2}
pytestmark = [pytest.mark.processor, pytest.mark.usefixtures("fresh_trials")]


def product(name: str, x, weight, bias=None, gelu=False):
    """x times a weight that was packed in a format."""
    form = FORMATS[name]
    with torch.inference_mode():
        bias = None if bias is None else bias.to(form.dtype)
        packed = form.pack(weight, bias, form.dtype, len(x))
        first, again = (form.product(x.to(form.dtype), packed, gelu) for _ in range(2))
    assert torch.equal(first, again) and first.dtype == form.dtype
    return first.float()


def needs(name: str) -> None:
    """Skip where a format does not work."""
    if not works(name):
        pytest.skip(f"no products in {name} here")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("outputs", [1, 17, BLOCK, BLOCK + 1, 5 * BLOCK - 7])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_packed_product_is_the_plain_one_within_the_formats_error(name, outputs, rows):
    needs(name)
    torch.manual_seed(0)
    x, weight, bias = torch.randn(rows, 129), torch.randn(outputs, 129), torch.randn(outputs)
    plain = F.linear(x, weight, bias)
    got = product(name, x, weight, bias)
    assert got.shape == plain.shape
    assert (got - plain).norm() <= ERROR[name] * plain.norm()
    fused = product(name, x, weight, bias, gelu=True)
    assert (fused - F.gelu(plain, approximate="tanh")).norm() <= 1.5 * ERROR[name] * plain.norm()
    assert product(name, x[None], weight).shape == (1, rows, outputs)


@pytest.mark.parametrize("name", LOSSY)
def test_only_the_weights_are_rounded_not_the_inputs(name):
    """Inputs of 1e5 and 1 together: float16 has no room for the one, 8 bits none for the other."""
    needs(name)
    torch.manual_seed(0)
    weight = torch.randn(64, 128)
    x = torch.randn(2, 128) * torch.tensor([1e5, 1.0]).repeat(64)
    got, want = product(name, x, weight), x @ rounded(weight, name).T
    assert (got - want).norm() <= 1e-5 * want.norm()
    small = torch.zeros(1, 128).index_fill(1, torch.tensor([5]), 1e-3)
    got, want = product(name, small, weight), small @ rounded(weight, name).T
    assert torch.allclose(got, want, rtol=1e-5, atol=1e-9)


def test_the_rounding_of_weights_is_what_the_formats_say():
    torch.manual_seed(0)
    weight = torch.randn(BLOCK, 40)
    for name, largest in (
        ("columns", torch.zeros(())),
        ("float16", weight.abs() / 2**11),
        ("int8", (weight.amax(0) - weight.amin(0)) / 510),  # half a step, per input and block
    ):
        if works(name):
            off = (rounded(weight, name) - weight).abs()
            assert (off <= largest * 1.001 + 1e-6).all() and off.max() >= 0.4 * largest.max()


def test_the_smallest_block_is_padded_and_the_padding_is_not_seen():
    needs("int8")
    assert torch.equal(product("int8", torch.ones(1, 3), torch.zeros(5, 3)), torch.zeros(1, 5))
    packed = FORMATS["columns"].pack(torch.ones(BLOCK + 1, 3), None, torch.float32, 1)[0]
    assert packed.table.shape == (2 * 3, 112)  # 193 outputs: two blocks of 112, not of 192


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("where", ["no x86", "no FBGEMM"])
def test_a_format_the_user_asked_for_says_why_it_is_not_used(name, where, monkeypatch, capsys):
    if where == "no x86":
        monkeypatch.setattr(weight_formats, "cpu_is_x86", lambda: False)
    else:
        engines = types.SimpleNamespace(supported_engines=["qnnpack"])
        monkeypatch.setattr(torch.backends, "quantized", engines)
    assert not works("columns") and capsys.readouterr() == ("", "")  # nobody asked for it
    assert not works(name) and not works(name)
    said = capsys.readouterr().err
    assert said == (
        f"no packed weights in {name}, using plain products (needs an x86 processor and FBGEMM)\n"
    )


@pytest.mark.parametrize("name", LOSSY)
def test_an_operator_that_is_gone_or_wrong_is_said_in_one_line(name, monkeypatch, capsys):
    monkeypatch.setattr(weight_formats, "has_fbgemm", lambda: True)
    form = FORMATS[name]
    broken = {
        "gone": dict(pack=lambda *how: torch.ops.quantized.no_such_operator(*how)),
        "wrong": dict(product=lambda x, packed, gelu: torch.zeros(len(x), 16)),
    }
    for change in broken.values():
        changed = {**vars(form), **change, "expected": lambda: True}
        monkeypatch.setitem(FORMATS, name, weight_formats.Format(**changed))
        works.cache_clear()
        assert not works(name)
        said = capsys.readouterr().err
        assert (
            said.startswith(f"no packed weights in {name}, using plain") and said.count("\n") == 1
        )


def test_a_dtype_that_nobody_packs_is_no_format():
    assert not works("float64")
