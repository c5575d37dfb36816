"""The checks of chapter 02: right answers of any type pass, each mistake gets its own hint."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conftest import said
from nanogpt_course.checks.chapter_02 import check_02_1, check_02_2, check_02_3, check_02_4
from nanogpt_lib.model import attention_by_hand


@pytest.mark.parametrize("answer", [4608, 4608.0, np.int64(4608), torch.tensor(4608)])
def test_the_context_is_right_in_any_type(answer, capsys):
    assert said(capsys, check_02_1, answer).startswith("Right.")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (2304, "two operations"),
        (1536, "the MLP has two more"),
        (768, "one operation"),
        (6, "units of C"),
        (9216, "two products"),
        (1024, "Set that equal"),
        ("4608", "one number"),
        (None, "Nothing to check"),
    ],
)
def test_a_wrong_context_gets_the_hint_for_its_mistake(answer, hint, capsys):
    assert hint in said(capsys, check_02_1, answer)


def by_hand(x, weight, bias, eps=1e-5):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
    return (x - mean) / torch.sqrt(variance + eps) * weight + bias


def in_place(x, w, b, eps=1e-5):
    x -= x.mean(-1, keepdim=True)
    x /= (x.square().mean(-1, keepdim=True) + eps).sqrt()
    return x * w + b


@pytest.mark.parametrize(
    "answer",
    [
        by_hand,
        lambda x, w, b, eps=1e-5: by_hand(x.double(), w.double(), b.double(), eps),
        lambda x, w, b, eps=1e-5: F.layer_norm(x, x.shape[-1:], w, b, eps),
        in_place,
    ],
)
def test_a_layer_norm_is_right_in_any_precision(answer, capsys):
    assert said(capsys, check_02_2, answer).startswith("Right.")


def normal(x, correction=0, dims=-1):
    mean = x.mean(dims, keepdim=True)
    return (x - mean) / (x.var(dims, keepdim=True, correction=correction) + 1e-5).sqrt()


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda x, w, b, eps=1e-5: x, "nothing happened"),
        (lambda x, w, b, eps=1e-5: normal(x), "scale by weight and shift"),
        (lambda x, w, b, eps=1e-5: normal(x) * w, "shift by the bias"),
        (lambda x, w, b, eps=1e-5: normal(x) + b, "scale by the weight"),
        (lambda x, w, b, eps=1e-5: normal(x, 1) * w + b, "C - 1"),
        (lambda x, w, b, eps=1e-5: normal(x, 0, (0, 1, 2)) * w + b, "over all numbers"),
        (lambda x, w, b, eps=1e-5: normal(x, 0, 1) * w + b, "not over the tokens"),
        (lambda x, w, b, eps=1e-5: by_hand(x, w, b, 0), "eps is added"),
        (lambda x, w, b, eps=1e-5: normal(x) * w + b, "use the eps"),
        (
            lambda x, w, b, eps=1e-5: (
                (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True, correction=0) + eps) * w
                + b
            ),
            "eps is added",
        ),
        (lambda x, w, b, eps=1e-5: (x - x.mean(-1)) / x.std(-1) * w + b, "keepdim"),
        (lambda x, w, b, eps=1e-5: F.layer_norm(x, (8,), w, b, eps), "any number of dimensions"),
        (lambda x, w, b, eps=1e-5: None, "returns None"),
        (lambda x, w, b, eps=1e-5: 1.0, "a tensor"),
        (lambda x, w: x, "TypeError"),
        (7, "the function itself"),
    ],
)
def test_a_wrong_norm_gets_its_hint(answer, hint, capsys):
    assert hint in said(capsys, check_02_2, answer)


def untie(model):
    model.lm_head.weight = nn.Parameter(model.transformer.wte.weight.detach().clone())
    return model


def untie_the_table(model):
    model.transformer.wte.weight = nn.Parameter(model.lm_head.weight.clone())
    return model


def deep_head(model):
    head = nn.Linear(model.config.n_embd, model.config.vocab_size, bias=False)
    head.weight.data.copy_(model.transformer.wte.weight.data)
    model.lm_head = head
    return model


@pytest.mark.parametrize("answer", [untie, untie_the_table, deep_head])
def test_a_head_of_its_own(answer, capsys):
    assert said(capsys, check_02_3, answer).startswith("Right.")


def with_weight(make):
    def answer(model):
        model.lm_head.weight = make(model.transformer.wte.weight)
        return model

    return answer


def with_bias(model):
    model.lm_head.bias = nn.Parameter(torch.zeros(model.config.vocab_size))
    return untie(model)


def without_gradient(model):
    untie(model).lm_head.weight.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda model: model, "one Parameter under two names"),
        (with_weight(lambda w: nn.Parameter(w)), "one memory"),
        (with_weight(lambda w: nn.Parameter(w.data)), "one memory"),
        (with_weight(lambda w: nn.Parameter(torch.randn_like(w))), "logits changed"),
        (with_weight(lambda w: nn.Parameter(torch.zeros_like(w))), "logits changed"),
        (with_bias, "no bias"),
        (without_gradient, "requires_grad"),
        (lambda model: untie(model) and None, "returns None"),
        (lambda model: model.lm_head, "in place"),
        (with_weight(lambda w: w.clone()), "TypeError"),
        (None, "Nothing to check"),
    ],
)
def test_a_head_untied_by_mistake_gets_its_hint(answer, hint, capsys):
    assert hint in said(capsys, check_02_3, answer)


def grouped(q, k, v):
    n = q.size(1) // k.size(1)
    return attention_by_hand(q, k.repeat_interleave(n, dim=1), v.repeat_interleave(n, dim=1))


def grouped_by_view(q, k, v):
    B, H, T, D = q.shape
    G = k.size(1)
    k, v = (z[:, :, None].expand(B, G, H // G, T, D).reshape(B, H, T, D) for z in (k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@pytest.mark.parametrize("answer", [grouped, grouped_by_view])
def test_grouped_attention(answer, capsys):
    assert said(capsys, check_02_4, answer).startswith("Right.")


def times(n, how="repeat_interleave"):
    def answer(q, k, v):
        if how == "repeat":
            k, v = (z.repeat(1, n(q, k), 1, 1) for z in (k, v))
        else:
            k, v = (z.repeat_interleave(n(q, k), dim=1) for z in (k, v))
        return attention_by_hand(q, k, v)

    return answer


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (times(lambda q, k: q.size(1) // k.size(1), "repeat"), "repeat_interleave"),
        (times(lambda q, k: 3), "RuntimeError"),
        (lambda q, k, v: attention_by_hand(q, k[:, :1], v[:, :1]), "first group"),
        (lambda q, k, v: q, "q itself"),
        (lambda q, k, v: attention_by_hand(q, k, v), "RuntimeError"),
        (lambda q, k, v: grouped(q, k, v)[:, :2], "shape must be"),
        (
            lambda q, k, v: F.scaled_dot_product_attention(
                q, *(z.repeat_interleave(q.size(1) // z.size(1), 1) for z in (k, v))
            ),
            "sees later ones",
        ),
        (lambda q, k, v: torch.zeros_like(q), "as many heads"),
        (
            lambda q, k, v: grouped(q, k, v) if q.size(1) == 6 else grouped(q, k, v) + 1,
            "right for 6 heads",
        ),
        (lambda q, k, v: None, "returns None"),
    ],
)
def test_groups_by_mistake_get_their_hint(answer, hint, capsys):
    assert hint in said(capsys, check_02_4, answer)
