"""The checks of chapter 03: right answers of any type pass, each mistake gets its own hint."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from conftest import said
from nanogpt_course.checks.chapter_03 import (
    check_03_1,
    check_03_2,
    check_03_3,
    check_03_4,
    check_03_5,
    merges_of,
)

RIGHT = (64 / 85, 16 / 85, 4 / 85, 1 / 85)


@pytest.mark.parametrize(
    "answer", [RIGHT, list(RIGHT), (0.75, 0.19, 0.05, 0.01), torch.tensor(RIGHT), np.array(RIGHT)]
)
def test_probabilities_are_right_in_any_type(answer, capsys):
    assert said(capsys, check_03_1, answer).startswith("Right.")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        ((8 / 15, 4 / 15, 2 / 15, 1 / 15), "at temperature 1"),
        ((0.453, 0.320, 0.227, 0.160), "sum to 1"),
        ((0.391, 0.276, 0.195, 0.138), "temperature 2"),
        (RIGHT[::-1], "wrong order"),
        ((64, 16, 4, 1), "these are the odds"),
        ((0.5, 0.333, 0.167, 0.0), "logarithms"),
        ((16 / 15, 8 / 15, 4 / 15, 2 / 15), "sum to 2"),
        ((0.7, 0.2, 0.07, 0.03), "ln 8"),
        ((0.75, 0.25), "four probabilities"),
        (0.75, "four probabilities"),
        (None, "Nothing to check"),
    ],
)
def test_other_probabilities_get_their_hint(answer, hint, capsys):
    assert hint in said(capsys, check_03_1, answer)


def join(parts, pair):
    out, i = [], 0
    while i < len(parts):
        hit = tuple(parts[i : i + 2]) == pair
        out.append(pair[0] + pair[1] if hit else parts[i])
        i += 2 if hit else 1
    return out


def train(text, merges, pick=lambda counts: counts.most_common(1)[0][0], start=None):
    parts, found = start or [bytes([b]) for b in text.encode()], []
    for _ in range(merges):
        counts = Counter(pairwise(parts))
        if not counts:
            break
        found.append(pick(counts))
        parts = join(parts, found[-1])
    return found


@pytest.mark.parametrize("answer", [train, merges_of, lambda t, m: tuple(map(list, train(t, m)))])
def test_trained_merges_pass(answer, capsys):
    assert said(capsys, check_03_2, answer).startswith("Right.")


def without_recounting(text, merges):
    counts = Counter(pairwise([bytes([b]) for b in text.encode()]))
    return [pair for pair, _ in counts.most_common(merges)]


def without_an_end(text, merges):
    parts, found = [bytes([b]) for b in text.encode()], []
    for _ in range(merges):
        found.append(Counter(pairwise(parts)).most_common(1)[0][0])
        parts = join(parts, found[-1])
    return found


def last_of_equals(text, merges):
    return train(text, merges, lambda c: max(reversed(list(c)), key=c.get))


def alphabetical(text, merges):
    return train(text, merges, lambda c: max(c, key=lambda p: (c[p], p)))


def rarest(text, merges):
    return train(text, merges, lambda c: min(c, key=c.get))


def characters(text, merges):
    return train(text, merges, start=list(text))


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (without_recounting, "count again after every merge"),
        (without_an_end, "stop there"),
        (last_of_equals, "as frequent as"),
        (alphabetical, "as frequent as"),
        (rarest, "times"),
        (characters, "Begin with the text's bytes"),
        (lambda t, m: b"".join(list(t.encode())[:2]), "an int in Python: begin with"),
        (lambda t, m: train(t, m - 1), "merges to find"),
        (lambda t, m: train(t, m) + [(b"x", b"y")] * (m - len(train(t, m))), "nothing left"),
        (lambda t, m: [a + b for a, b in train(t, m)], "a pair"),
        (lambda t, m: list(pairwise(t.encode()))[:m], "pairs of bytes"),
        (lambda t, m: [], "merges to find"),
        (lambda t, m: None, "returns None"),
        (lambda t, m: 5, "list of pairs"),
        (lambda t: [], "TypeError"),
    ],
)
def test_wrong_merges_get_their_hint(answer, hint, capsys):
    assert hint in said(capsys, check_03_2, answer)


def min_p(probs, p):
    probs = probs.masked_fill(probs < p * probs.amax(-1, keepdim=True), 0.0)
    return probs / probs.sum(-1, keepdim=True)


def by_rows(probs, p):
    rows = []
    for row in probs:
        kept = torch.where(row >= p * row.max(), row, torch.zeros_like(row))
        rows.append(kept / kept.sum())
    return torch.stack(rows)


@pytest.mark.parametrize("answer", [min_p, by_rows])
def test_min_p_however_computed(answer, capsys):
    assert said(capsys, check_03_3, answer).startswith("Right.")


def norm(probs):
    return probs / probs.sum(-1, keepdim=True).clamp(min=1e-9)


def in_place(probs, p):
    probs[probs < p * probs.amax(-1, keepdim=True)] = 0
    return norm(probs)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda probs, p: probs, "nothing is cut"),
        (lambda probs, p: probs * (probs >= p * probs.amax(-1, keepdim=True)), "sum to 1 again"),
        (
            lambda probs, p: probs.masked_fill(
                probs < p * probs.amax(-1, keepdim=True), float("-inf")
            ).softmax(-1),
            "without a softmax",
        ),
        (lambda probs, p: norm(probs * (probs >= p * probs.max())), "not of the whole tensor"),
        (lambda probs, p: norm(probs * (probs >= p)), "not a probability itself"),
        (
            lambda probs, p: norm(probs * (probs > p * probs.amax(-1, keepdim=True))),
            "at least, not more",
        ),
        (lambda probs, p: norm(probs * (probs >= p * probs.amax(0))), "the largest p of the row"),
        (in_place, "make a new tensor"),
        (lambda probs, p: probs.argmax(-1), "of the shape of probs"),
        (lambda probs, p: None, "returns None"),
        (lambda probs: probs, "TypeError"),
        (0.1, "the function itself"),
    ],
)
def test_a_wrong_min_p_gets_its_hint(answer, hint, capsys):
    assert hint in said(capsys, check_03_3, answer)


def halves(block, n):
    half = block // 2
    return sum(half + 1 if step % half == 0 else 1 for step in range(n - 1))


@pytest.mark.parametrize(
    "answer",
    [
        lambda block, n: ((n - 1) * block, halves(block, n)),
        lambda block, n: [np.int64((n - 1) * block), torch.tensor(halves(block, n))],
    ],
)
def test_positions_in_any_type(answer, capsys):
    assert said(capsys, check_03_4, answer).startswith("Right.")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda b, n: (halves(b, n), (n - 1) * b), "other way round"),
        (lambda b, n: (n * b, halves(b, n)), "count from the second"),
        (lambda b, n: (n - 1, halves(b, n)), "all of them are computed"),
        (lambda b, n: ((n - 1) * (b - 1), halves(b, n)), "sliding: block"),
        (lambda b, n: ((n - 1) * b, n - 1), "and the rebuild"),
        (lambda b, n: ((n - 1) * b, 2 * (n - 1) + 7), "halves: block"),
        (lambda b, n: ((n - 1) * b, halves(b, n + 1)), "halves: block"),
        (lambda b, n: (n - 1) * b, "two numbers"),
        (lambda b, n: (1, 2, 3), "two numbers"),
        (lambda b, n: None, "returns None"),
    ],
)
def test_wrong_positions_get_their_hint(answer, hint, capsys):
    assert hint in said(capsys, check_03_4, answer)


def speculative(large, small, idx, count, k, bonus=True, shift=0):
    end = idx.size(1) + count
    while idx.size(1) < end:
        T, draft = idx.size(1), idx
        for _ in range(min(k, end - T - 1)):
            draft = torch.cat([draft, small(draft)[0][:, -1:].argmax(-1)], dim=1)
        choice = large(draft)[0].argmax(-1)[:, T - 1 :]
        agree = (draft[:, T:] == choice[:, :-1]).long().cumprod(-1).sum()
        idx = torch.cat([idx, choice[:, shift : agree + 1]], dim=1)
    return idx


def test_speculative_decoding_passes(capsys):
    assert said(capsys, check_03_5, speculative).startswith("Right.")


def greedy(large, small, idx, count, k):
    for _ in range(count):
        idx = torch.cat([idx, large(idx)[0][:, -1:].argmax(-1)], dim=1)
    return idx


def only_small(large, small, idx, count, k):
    return greedy(small, large, idx, count, k)


def asks_both_but_saves_nothing(large, small, idx, count, k):
    for _ in range(count):
        small(idx)
        idx = torch.cat([idx, large(idx)[0][:, -1:].argmax(-1)], dim=1)
    return idx


def never_judges(large, small, idx, count, k):
    large(idx)
    return greedy(small, large, idx, count, k)


def too_long(large, small, idx, count, k):
    return speculative(large, small, idx, count + 1, k)


def judged(large, small, idx, count, k, keep):
    """Always k proposals, of which `keep` decides how many stay; never trimmed."""
    end = idx.size(1) + count
    while idx.size(1) < end:
        T, draft = idx.size(1), idx
        for _ in range(k):
            draft = torch.cat([draft, small(draft)[0][:, -1:].argmax(-1)], dim=1)
        choice = large(draft)[0].argmax(-1)[:, T - 1 :]
        kept = keep((draft[:, T:] == choice[:, :-1]).long()[0])
        idx = torch.cat([draft[:, : T + kept], choice[:, kept : kept + 1]], dim=1)
    return idx


def untrimmed(*args):
    return judged(*args, keep=lambda same: int(same.cumprod(-1).sum()))


def counts_matches_anywhere(*args):
    return judged(*args, keep=lambda same: int(same.sum()))[:, : args[2].size(1) + args[3]]


def one_position_late(large, small, idx, count, k):
    end = idx.size(1) + count
    while idx.size(1) < end:
        T, draft = idx.size(1), idx
        for _ in range(min(k, end - T - 1)):
            draft = torch.cat([draft, small(draft)[0][:, -1:].argmax(-1)], dim=1)
        choice = large(draft)[0].argmax(-1)[:, T - 1 :]
        agree = (draft[:, T:] == choice[:, 1:]).long().cumprod(-1).sum()
        idx = torch.cat([idx, choice[:, : agree + 1]], dim=1)[:, :end]
    return idx


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (greedy, "never asked for proposals"),
        (only_small, "small model's text"),
        (never_judges, "small model's text"),
        (untrimmed, "trim"),
        (counts_matches_anywhere, "after the first wrong one kept"),
        (asks_both_but_saves_nothing, "none saved"),
        (too_long, "exactly max_new_tokens"),
        (one_position_late, "Off by one"),
        (lambda large, small, idx, count, k: idx, "exactly max_new_tokens"),
        (lambda large, small, idx, count, k: idx.tolist(), "return a tensor"),
        (lambda large, small, idx, count, k: None, "returns None"),
        (lambda large, small, idx: idx, "TypeError"),
        (4, "the function itself"),
    ],
)
def test_wrong_speculation_gets_its_hint(answer, hint, capsys):
    assert hint in said(capsys, check_03_5, answer)
