"""The checks of chapter 05: right answers of any type pass, each mistake gets its own hint."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from conftest import said
from nanogpt_course.checks.chapter_05 import check_05_1, check_05_2, check_05_3, check_05_4

MANTISSA = {"fp32": 23, "TF32": 10, "fp16": 10, "bf16": 7}
STEPS = {name: (2.0**-M, 2.0 ** (9 - M)) for name, M in MANTISSA.items()}


def rounded(digits: int) -> dict:
    return {n: tuple(float(f"{s:.{digits - 1}e}") for s in steps) for n, steps in STEPS.items()}


@pytest.mark.parametrize(
    "answer",
    [
        STEPS,
        rounded(3),
        {name: list(steps) for name, steps in STEPS.items()},
        {name: np.array(steps) for name, steps in STEPS.items()},
        {name: torch.tensor(steps) for name, steps in STEPS.items()},
        {name.upper(): tuple(map(np.float32, steps)) for name, steps in STEPS.items()},
    ],
)
def test_the_steps_of_four_formats_pass_in_any_type(answer, capsys):
    assert said(capsys, check_05_1, answer).startswith("Right.")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (None, "Nothing to check"),
        ([1, 2], "give a dictionary"),
        ({}, "is missing"),
        ({**STEPS, "bf16": 2**-7}, "two steps"),
        ({**STEPS, "bf16": (2**-7,)}, "two steps"),
        ({**STEPS, "bf16": (..., ...)}, "one number"),
        ({n: (a / 2, b / 2) for n, (a, b) in STEPS.items()}, "half a step"),
        ({n: (a, a) for n, (a, b) in STEPS.items()}, "step at 1"),
        ({n: (a, 1000 * a) for n, (a, b) in STEPS.items()}, "powers of two"),
        ({n: (a, 2 * b) for n, (a, b) in STEPS.items()}, "twice too large"),
        ({**STEPS, "fp16": STEPS["bf16"]}, "10 bits"),
        ({n: (0, 0) for n in STEPS}, "bits of mantissa"),
    ],
)
def test_wrong_steps_get_the_hint_for_the_mistake(answer, hint, capsys):
    assert hint in said(capsys, check_05_1, answer)


def to_tf32(x):
    bits = x.view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


def in_numpy(x):
    bits = x.numpy().view(np.int32)
    return torch.from_numpy(((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(np.float32))


def by_halves(x):
    bits = x.view(torch.int32)
    tail = bits & 0x1FFF
    up = (tail > 0x1000) | ((tail == 0x1000) & ((bits & 0x2000) != 0))
    return ((bits & ~0x1FFF) + 0x2000 * up).to(torch.int32).view(torch.float32)


@pytest.mark.parametrize("answer", [to_tf32, in_numpy, by_halves])
def test_integer_rounding_to_tf32_passes(answer, capsys):
    assert said(capsys, check_05_2, answer).startswith("Right.")


def shorten(x, digits=10):
    fraction, exponent = torch.frexp(x)
    scale = 2 ** (digits + 1)
    return torch.ldexp((fraction * scale).round() / scale, exponent)


def in_place(x):
    bits = x.view(torch.int32)
    bits += 0xFFF + ((bits >> 13) & 1)
    bits &= ~0x1FFF
    return x


def positive_only(x):
    return torch.where(x > 0, to_tf32(x), (x.view(torch.int32) & ~0x1FFF).view(torch.float32))


def ties_by_sign(x):
    bits = x.view(torch.int32)
    add = torch.where(x > 0, 0xFFF + ((bits >> 13) & 1), torch.tensor(0x1000))
    return ((bits + add) & ~0x1FFF).to(torch.int32).view(torch.float32)


def masked(x, add=0, mask=~0x1FFF):
    return ((x.view(torch.int32) + add) & mask).view(torch.float32)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda x: None, "None so far"),
        (lambda x: x, "13 zero bits"),
        (lambda x: x.half().float(), "fp16 has not"),
        (lambda x: x.half(), "must be fp32"),
        (lambda x: x.bfloat16().float(), "10?"),
        (lambda x: shorten(x, 10), "integers on the bits"),
        (lambda x: shorten(x, 7), "10?"),
        (lambda x: masked(x), "cut, not rounded"),
        (lambda x: masked(x, 0x1000), "in the middle"),
        (lambda x: masked(x, 0xFFF), "in the middle"),
        (lambda x: masked(x, 0x1FFF), "away from zero"),
        (lambda x: masked(x, 0x1000, ~0xFFF), "13 zero bits"),
        (lambda x: to_tf32(x).view(torch.int32), "view them as float32"),
        (lambda x: to_tf32(x).view(torch.int32).float(), "converts the integer's value"),
        (in_place, "you changed the input"),
        (positive_only, "half a step"),
        (ties_by_sign, "mirror image"),
        (lambda x: to_tf32(x)[:5], "shape"),
        (lambda x: x.nonsense, "AttributeError"),
        ("to_tf32", "the function itself"),
    ],
)
def test_a_wrong_rounding_gets_the_hint_for_its_mistake(answer, hint, capsys):
    assert hint in said(capsys, check_05_2, answer)


def needed(N, V):
    return 2.0 ** (math.ceil(math.log2(N * V)) - 14)


@pytest.mark.parametrize(
    "answer",
    [
        needed,
        lambda N, V: torch.tensor(needed(N, V)),
        lambda N, V: np.float64(needed(N, V)),
        lambda N, V: 2.0 ** ((N * V - 1).bit_length() - 14),
    ],
)
def test_the_smallest_scale_passes(answer, capsys):
    assert said(capsys, check_05_3, answer).startswith("Right.")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda N, V: None, "None so far"),
        (lambda N, V: 65536.0, "compare 1/(N·V)"),
        (lambda N, V: needed(N, V) / 2**10, "subnormal"),
        (lambda N, V: 2 * needed(N, V), "half of it"),
        (lambda N, V: needed(N, V) / 2, "twice that"),
        (lambda N, V: N * V * 2.0**-14, "a power of two, please"),
        (lambda N, V: 2.0 ** (round(math.log2(N * V)) - 14), "round up"),
        (lambda N, V: 2.0 ** (math.floor(math.log2(N * V)) - 14), "just below normal"),
        (lambda N, V: 2.0 ** ((N * V).bit_length() - 14), "power of two itself"),
        (lambda N, V: max(1.0, needed(N, V)), "below 1"),
        (lambda N, V: 0, "above zero"),
        (lambda N, V: "2", "one number"),
        (lambda N: 1, "TypeError"),
    ],
)
def test_a_wrong_scale_gets_the_hint_for_its_mistake(answer, hint, capsys):
    assert hint in said(capsys, check_05_3, answer)


def backward(q, k, v, out, lse, d_out, block=64, *, scaled=True, mask=True, rows=True, last=True):
    """Right by default; each keyword is a mistake."""
    scale, T = 1 / math.sqrt(q.size(-1)), q.size(-2)
    row_sum = (d_out * out).sum(-1, keepdim=True) if rows else 0.0
    query = torch.arange(T)[:, None]
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for first in range(0, T if last else T - T % block, block):
        part = slice(first, min(first + block, T))
        keys, values = k[..., part, :], v[..., part, :]
        later = torch.arange(part.start, part.stop) > query
        p = (q @ keys.mT * scale - lse).exp()
        p = p.masked_fill(later, 0.0) if mask else p
        ds = p * (d_out @ values.mT - row_sum) * (scale if scaled else 1.0)
        dq += ds @ keys
        dk[..., part, :] = ds.mT @ q
        dv[..., part, :] = p.mT @ d_out
    return dq, dk, dv


def by_autograd(q, k, v, out, lse, d_out, block=64):
    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    with torch.enable_grad():
        result = F.scaled_dot_product_attention(*leaves, is_causal=True)
        return torch.autograd.grad(result, leaves, d_out)


def by_backward(q, k, v, out, lse, d_out, block=64):
    leaves = [t.clone() for t in (q, k, v)]
    for leaf in leaves:
        leaf.requires_grad = True
    with torch.enable_grad():
        scores = leaves[0] @ leaves[1].mT / math.sqrt(q.size(-1))
        late = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        (scores.masked_fill(late, -math.inf).softmax(-1) @ leaves[2]).backward(d_out)
    return [leaf.grad for leaf in leaves]


def by_the_kernel(q, k, v, out, lse, d_out, block=64):
    run = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return run(d_out, q, k, v, out, lse[..., 0], 0.0, True)


def mistaken(**how):
    return lambda *args: backward(*args, **how)


@pytest.mark.parametrize("answer", [backward, lambda *args: list(backward(*args))])
def test_a_backward_pass_in_blocks_passes(answer, capsys):
    assert said(capsys, check_05_4, answer).startswith("Right.")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda *args: None, "None so far"),
        (lambda *args: [torch.zeros_like(t) for t in args[:3]], "still zero"),
        (mistaken(scaled=False), "divided by √D"),
        (mistaken(mask=False), "later key"),
        (lambda *args: [mistaken()(*args)[i] for i in (0, 2, 1)], "in the order"),
        (mistaken(rows=False), "rowsum"),
        (mistaken(last=False), "last block is shorter"),
        (lambda *args: backward(*args)[::-1], "in the order"),
        (lambda *args: [mistaken()(*args)[i] for i in (1, 0, 2)], "in the order"),
        (lambda *args: [mistaken()(*args)[i] for i in (2, 0, 1)], "in the order"),
        (lambda *args: backward(*args)[0], "3 tensors"),
        (by_autograd, "leave autograd"),
        (by_backward, "leave autograd"),
        (by_the_kernel, "leave autograd"),
        (lambda *args: backward(*args[:6], 1000), "whole (T, T)"),
        (lambda *args: backward(*args[:6], 199), "most of one"),
        (lambda *args: backward(*args[:6], 64), "64 keys"),
        (lambda *args: 1 / 0, "ZeroDivisionError"),
        ("flash_backward", "the function itself"),
    ],
)
def test_a_wrong_backward_pass_gets_the_hint_for_its_mistake(answer, hint, capsys):
    assert hint in said(capsys, check_05_4, answer)
