"""The checks of chapter 13: right answers pass, each mistake gets its own hint."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from conftest import said
from nanogpt_course.checks.chapter_13 import (
    check_13_1,
    check_13_2,
    check_13_3,
    check_13_4,
    turned_part,
)
from nanogpt_lib.modern import BASE, rotate


@pytest.mark.parametrize("answer", [13, 13.0, np.int64(13), torch.tensor(13)])
def test_the_same_distance_in_any_type(answer, capsys):
    assert said(capsys, check_13_1, answer).startswith("Right.")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (27, "mirror image"),
        (7, "is the distance"),
        (893, "not the position"),
        (20, "same place"),
        (12, "how far before"),
        ("13", "one number"),
        (None, "Nothing to check"),
    ],
)
def test_another_position_gets_its_hint(answer, hint, capsys):
    assert hint in said(capsys, check_13_1, answer)


def by_copy(x, position, count):
    out = x.clone()
    out[..., :count] = rotate(x[..., :count], position)
    return out


@pytest.mark.parametrize("answer", [turned_part, by_copy])
def test_a_part_that_turns(answer, capsys):
    assert said(capsys, check_13_2, answer).startswith("Right.")


def in_place(x, position, count):
    x[..., :count] = rotate(x[..., :count], position)
    return x


def last_channels(x, position, count):
    head, tail = x[..., : x.size(-1) - count], x[..., x.size(-1) - count :]
    return torch.cat([head, rotate(tail, position)], dim=-1)


def speeds_of_the_whole_head(x, position, count):
    angle = position[:, None] * BASE ** (-torch.arange(count // 2) / (x.size(-1) // 2))
    a, b = x[..., :count].chunk(2, dim=-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([a * cos - b * sin, a * sin + b * cos, x[..., count:]], dim=-1)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (speeds_of_the_whole_head, "head with 4 channels"),
        (lambda x, p, n: rotate(x, p), "all channels"),
        (lambda x, p, n: torch.cat([rotate(x, p)[..., :n], x[..., n:]], dim=-1), "cut first"),
        (last_channels, "last channels"),
        (in_place, "in place"),
        (lambda x, p, n: rotate(x[..., :n], p), "shape"),
        (lambda x, p, n: x.clone(), "nothing has turned"),
        (lambda x, p, n: turned_part(x, torch.arange(7), n), "first 4 channels"),
        (lambda x, p, n: turned_part(x, p, 4), "with count = 8"),
        (lambda x, p, n: x.tolist(), "a tensor"),
        (lambda x, p, n: None, "returns None"),
        (3, "the function itself"),
    ],
)
def test_a_part_that_turns_wrongly_gets_its_hint(answer, hint, capsys):
    assert hint in said(capsys, check_13_2, answer)


@pytest.mark.parametrize(
    "answer",
    [
        lambda z, cap=15.0: 1 - torch.tanh(z / cap) ** 2,
        lambda z, cap=15.0: torch.cosh(z.double() / cap).pow(-2).float(),
    ],
)
def test_the_slope_of_a_cap(answer, capsys):
    assert said(capsys, check_13_3, answer).startswith("Right.")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda z, cap: cap * torch.tanh(z / cap), "not its slope"),
        (lambda z, cap: (1 - torch.tanh(z / cap) ** 2) / cap, "cancel"),
        (lambda z, cap: (1 - torch.tanh(z / cap) ** 2) * cap, "inner derivative"),
        (lambda z, cap: 1 - torch.tanh(z / cap), "square it"),
        (lambda z, cap: 1 - torch.tanh(z) ** 2, "z / cap"),
        (lambda z, cap: 1 - (cap * torch.tanh(z / cap)) ** 2, "not multiplied"),
        (lambda z, cap: 1 - torch.tanh(z / 15) ** 2, "not always 15"),
        (lambda z, cap: torch.ones_like(z), "not the derivative"),
        (lambda z, cap: (1 - torch.tanh(z / cap) ** 2).sum(), "one slope"),
        (lambda z, cap: 1 - math.tanh(z[0].item() / cap) ** 2, "a tensor"),
        (lambda z, cap: None, "returns None"),
    ],
)
def test_a_wrong_slope_gets_its_hint(answer, hint, capsys):
    assert hint in said(capsys, check_13_3, answer)


def repeated(q, k, v, how=lambda t, n: t.repeat_interleave(n, dim=1), **settings):
    n = q.size(1) // k.size(1)
    settings = {"is_causal": True} | settings
    return F.scaled_dot_product_attention(q, how(k, n), how(v, n), **settings)


def by_views(q, k, v):
    B, H, T, D = q.shape
    q = q.view(B, k.size(1), -1, T, D)
    scores = q @ k[:, :, None].mT / D**0.5
    scores = scores.masked_fill(~torch.ones(T, T).tril().bool(), -math.inf)
    return (scores.softmax(dim=-1) @ v[:, :, None]).reshape(B, H, T, D)


@pytest.mark.parametrize("answer", [repeated, by_views])
def test_grouped_queries(answer, capsys):
    assert said(capsys, check_13_4, answer).startswith("Right.")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda q, k, v: (q @ k.mT).softmax(-1) @ v, "more heads than k and v"),
        (lambda q, k, v: repeated(q, k, v, is_causal=False), "future"),
        (lambda q, k, v: repeated(q, k, v, scale=1.0), "√D"),
        (lambda q, k, v: repeated(q, k, v, how=lambda t, n: t.repeat(1, n, 1, 1)), "take turns"),
        (lambda q, k, v: repeated(q[:, : k.size(1)], k, v), "the shape"),
        (lambda q, k, v: repeated(q, k, k), "numbers differ"),
        (lambda q, k, v: repeated(q, k, v).tolist(), "a tensor"),
        (lambda q, k, v: F.scaled_dot_product_attention(q, k, v), "more heads than k and v"),
        (lambda q, k, v: None, "returns None"),
    ],
)
def test_wrong_grouped_queries_get_their_hint(answer, hint, capsys):
    assert hint in said(capsys, check_13_4, answer)
