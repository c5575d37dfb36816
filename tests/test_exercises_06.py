"""The checks of chapter 06: right answers of any type pass, each mistake gets its own hint."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from conftest import said
from nanogpt_course.checks.chapter_06 import (
    check_06_1,
    check_06_2,
    check_06_3,
    check_06_4,
    stable,
)


@pytest.mark.parametrize("answer", [9894, 9894.0, np.int64(9894), torch.tensor(9894)])
def test_half_way_is_right_in_any_type(answer, capsys):
    assert said(capsys, check_06_1, answer).startswith("Right.")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (9895, "counting from 1"),
        (9893, "one too early"),
        (10_544, "half of the peak"),
        (9536, "middle of the run"),
        (9537, "middle of the run"),
        (9179, "half the length"),
        (393, "on its way up"),
        (19_073, "where is a cosine zero"),
        (3.3e-4, "where is a cosine zero"),
        ("9894", "one number"),
        (None, "Nothing to check"),
    ],
)
def test_another_update_gets_its_hint(answer, hint, capsys):
    assert hint in said(capsys, check_06_1, answer)


@pytest.mark.parametrize("kind", [float, np.float64, torch.tensor])
def test_a_stable_schedule_in_any_type(kind, capsys):
    def answer(step, **plan):
        return kind(stable(step, **plan))

    assert said(capsys, check_06_2, answer).startswith("Right.")


def cases(step, *, max_lr, warmup_steps, decay_steps, max_steps):
    """Another natural way to write it."""
    if step >= max_steps:
        return 0.0
    up = max_lr * (step + 1) / warmup_steps if step < warmup_steps else max_lr
    return min(up, max_lr * (max_steps - step) / decay_steps)


def test_a_stable_schedule_by_cases(capsys):
    assert said(capsys, check_06_2, cases).startswith("Right.")


def never_down(step, *, max_lr, warmup_steps, decay_steps, max_steps):
    return max_lr * min(1, (step + 1) / warmup_steps)


def from_zero(step, *, max_lr, warmup_steps, decay_steps, max_steps):
    return max_lr * min(1, step / warmup_steps, max(0, max_steps - step) / decay_steps)


def negative(step, *, max_lr, warmup_steps, decay_steps, max_steps):
    return max_lr * min(1, (step + 1) / warmup_steps, (max_steps - step) / decay_steps)


def early(step, *, max_lr, warmup_steps, decay_steps, max_steps):
    return max_lr * min(1, (step + 1) / warmup_steps, max(0, max_steps - 1 - step) / decay_steps)


def peak_of_one(step, *, max_lr, warmup_steps, decay_steps, max_steps):
    return min(1, (step + 1) / warmup_steps, max(0, max_steps - step) / decay_steps)


def decays_over_the_rest(step, *, max_lr, warmup_steps, decay_steps, max_steps):
    return max_lr * min(
        1, (step + 1) / warmup_steps, max(0, max_steps - step) / (max_steps - warmup_steps)
    )


def ramps_do_not_meet(step, *, max_lr, warmup_steps, decay_steps, max_steps):
    if step < warmup_steps:
        return max_lr * (step + 1) / warmup_steps
    if step <= max_steps - decay_steps:
        return max_lr
    return max(0.0, max_lr * (max_steps - step - 1e-12) / decay_steps) * (max_steps > 9) or (
        0.0 if step >= max_steps else max_lr * 0.5
    )


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (never_down, "half-way through the decay"),
        (from_zero, "must not have a rate of 0"),
        (negative, "never negative"),
        (early, "rate of 0 and teaches nothing"),
        (peak_of_one, "not always 1"),
        (decays_over_the_rest, "constant"),
        (ramps_do_not_meet, "ramps meet"),
        (lambda step, **plan: None, "returns None"),
        (lambda step, **plan: "fast", "one number"),
        (0.5, "the function itself"),
    ],
)
def test_a_wrong_schedule_gets_its_hint(answer, hint, capsys):
    assert hint in said(capsys, check_06_2, answer)


def size(t, beta2=0.95):
    return (1 - 0.9**t) / math.sqrt(1 - beta2**t)


def by_loop(t, beta2=0.95):
    m = v = 0.0
    for _ in range(t):
        m, v = 0.9 * m + 0.1, beta2 * v + 1 - beta2
    return m / v**0.5


@pytest.mark.parametrize("answer", [size, by_loop, lambda t, b=0.95: torch.tensor(size(t, b))])
def test_the_uncorrected_size_however_computed(answer, capsys):
    assert said(capsys, check_06_3, answer).startswith("Right.")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda t, b=0.95: 1.0, "*with* the correction"),
        (lambda t, b=0.95: (1 - 0.9**t) / (1 - b**t), "take its root"),
        (lambda t, b=0.95: 1 / size(t, b), "upside down"),
        (lambda t, b=0.95: 1 - 0.9**t, "where is v"),
        (lambda t, b=0.95: size(t), "beta2 = 0.999"),
        (lambda t, b=0.95: size(t + 1, b), "geometric sum"),
        (lambda t, b=0.95: size(t - 1, b) if t > 1 else size(1, b), "one update behind"),
        (lambda t, b=0.95: 0.3, "geometric sum"),
        (lambda t, b=0.95: 0.1 / (1 - b) ** 0.5, "first update's size"),
        (lambda t, b=0.95: size(t - 1, b), "at t = 1 one gradient is already in"),
        (lambda t, b=0.95: None, "returns None"),
        (lambda: 1.0, "TypeError"),
    ],
)
def test_a_wrong_size_gets_its_hint(answer, hint, capsys):
    assert hint in said(capsys, check_06_3, answer)


def loss_of(model, x, y, **how):
    return F.cross_entropy(model(x)[0].flatten(0, 1), y.flatten(), **how)


def sums(model, batches):
    total = sum((y != -100).sum() for _, y in batches)
    for x, y in batches:
        (loss_of(model, x, y, reduction="sum") / total).backward()


def weighted_means(model, batches):
    total = sum((y != -100).sum().item() for _, y in batches)
    for x, y in batches:
        if n := (y != -100).sum().item():
            (loss_of(model, x, y) * n / total).backward()


def forward_of_all(model, batches):
    total = sum((y != -100).sum().item() for _, y in batches)
    for x, y in batches:
        loss = loss_of(model, x, y, reduction="sum") / total
        if (y != -100).any():
            loss.backward()


def one_backward(model, batches):
    total = sum((y != -100).sum() for _, y in batches)
    sum(loss_of(model, x, y, reduction="sum") / total for x, y in batches).backward()


def one_pass(model, batches):
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    loss_of(model, x, y).backward()


@pytest.mark.parametrize("answer", [sums, weighted_means, forward_of_all])
def test_uneven_parts_however_weighed(answer, capsys):
    assert said(capsys, check_06_4, answer).startswith("Right.")


def mean_of_means(model, batches):
    for x, y in batches:
        (loss_of(model, x, y) / len(batches)).backward()


def by_positions(model, batches):
    total = sum(y.numel() for _, y in batches)
    for x, y in batches:
        (loss_of(model, x, y, reduction="sum") / total).backward()


def bare_sums(model, batches):
    for x, y in batches:
        loss_of(model, x, y, reduction="sum").backward()


def own_counts(model, batches):
    for x, y in batches:
        (loss_of(model, x, y, reduction="sum") / (y != -100).sum()).backward()


def nothing(model, batches):
    for x, y in batches:
        loss_of(model, x, y)


def last_only(model, batches):
    total = sum((y != -100).sum() for _, y in batches)
    for x, y in batches:
        model.zero_grad()
        (loss_of(model, x, y, reduction="sum") / total).backward()


def doubled(model, batches):
    sums(model, batches)
    sums(model, batches)


def without_the_mask(model, batches):
    total = sum((y != -100).sum() for _, y in batches)
    for x, y in batches:
        (loss_of(model, x, y.clamp(min=0), reduction="sum") / total).backward()


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (mean_of_means, "weigh each micro-batch"),
        (one_pass, "one big batch"),
        (one_backward, "backward after each"),
        (by_positions, "the ignored ones do not count"),
        (bare_sums, "gradient of the sum"),
        (own_counts, "weigh each micro-batch"),
        (nothing, "call backward()"),
        (last_only, "only the last micro-batch is left"),
        (doubled, "2 times the right one"),
        (without_the_mask, "weigh each micro-batch"),
        (lambda model: None, "TypeError"),
        (3.0, "the function itself"),
    ],
)
def test_a_wrong_accumulation_gets_its_hint(answer, hint, capsys):
    assert hint in said(capsys, check_06_4, answer)
