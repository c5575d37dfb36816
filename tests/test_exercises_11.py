"""The checks of chapter 11: right answers pass, each mistake gets its own hint."""

import numpy as np
import pytest
import torch

from conftest import said
from nanogpt_course.checks.chapter_11 import check_11_1, check_11_2, check_11_3, check_11_4
from nanogpt_lib.conversations import IGNORED, answer_targets, pack


@pytest.mark.parametrize("answer", [1_179_648, 1179648.0, np.int64(1_179_648)])
def test_the_parameters_of_adapters_in_any_type(answer, capsys):
    assert said(capsys, check_11_1, answer).startswith("Right.")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (98_304, "twelve"),
        (147_456, "rank 1"),
        (84_934_656, "matrices themselves"),
        (516_096, "both count"),
        (294_912, "c_attn alone"),
        (5, "four matrices"),
        ("1179648", "one number"),
        (None, "Nothing to check"),
    ],
)
def test_a_wrong_number_of_parameters_gets_its_hint(answer, hint, capsys):
    assert hint in said(capsys, check_11_1, answer)


def last_answers(windows, roles):
    targets = answer_targets(windows, roles)
    x = windows[:, :-1]
    place = torch.arange(x.size(1))
    last = torch.where(x == roles.assistant, place, -1).amax(dim=1, keepdim=True)
    return targets.masked_fill(place < last, IGNORED)


def in_a_loop(windows, roles):
    rows = []
    for row in windows.tolist():
        y, begins = row[1:], max(t for t, i in enumerate(row[:-1]) if i == roles.assistant)
        ends = next((t for t in range(begins, len(y)) if y[t] == roles.end), len(y) - 1)
        rows.append([i if begins <= t <= ends else -100 for t, i in enumerate(y)])
    return torch.tensor(rows, dtype=torch.int32)


@pytest.mark.parametrize("answer", [last_answers, in_a_loop])
def test_targets_in_the_last_answer(answer, capsys):
    assert said(capsys, check_11_2, answer).startswith("Right.")


def without_end(windows, roles):
    targets = last_answers(windows, roles)
    return targets.masked_fill(targets == roles.end, IGNORED)


def first_only(windows, roles):
    ends = torch.tensor([row.index(roles.end) for row in windows.tolist()])[:, None]
    counts = answer_targets(windows, roles) != IGNORED
    return counts & (torch.arange(windows.size(1) - 1) < ends)


def overwritten(windows, roles):
    windows[0, 0] = 1
    return last_answers(windows, roles)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (answer_targets, "every answer"),
        (lambda w, r: w[:, 1:], "every token"),
        (lambda w, r: last_answers(w, r)[:, 1:], "the shape"),
        (without_end, "never stops"),
        (overwritten, "changed the windows"),
        (lambda w, r: torch.where(last_answers(w, r) == -100, -100, w[:, :-1]), "next token"),
        (lambda w, r: last_answers(w, r).roll(1, 1), "next token"),
        (lambda w, r: w[:, 1:].where(first_only(w, r), -100), "first answer"),
        (lambda w, r: torch.full_like(w[:, 1:], -100), "last assistant token"),
        (lambda w, r: last_answers(w, r).tolist(), "a tensor"),
        (lambda w, r: None, "returns None"),
    ],
)
def test_wrong_targets_get_their_hint(answer, hint, capsys):
    assert hint in said(capsys, check_11_2, answer)


@pytest.mark.parametrize(
    "answer",
    [
        lambda w, A, B, s: w - B @ A * s,
        lambda w, A, B, s: (w.double() - s * (A.T.double() @ B.T.double()).T).float(),
    ],
)
def test_a_merge_undone(answer, capsys):
    assert said(capsys, check_11_3, answer).startswith("Right.")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda w, A, B, s: w, "merged weight"),
        (lambda w, A, B, s: w - B @ A, "times scale"),
        (lambda w, A, B, s: w + B @ A * s, "second time"),
        (lambda w, A, B, s: w - A @ B * s, "RuntimeError"),
        (lambda w, A, B, s: w.sub_(B @ A * s), "in place"),
        (lambda w, A, B, s: (w - B @ A * s).T, "shape"),
        (lambda w, A, B, s: w - B @ A * s / 3, "subtract what"),
        (lambda w, A, B, s: None, "returns None"),
    ],
)
def test_a_merge_undone_wrongly_gets_its_hint(answer, hint, capsys):
    assert hint in said(capsys, check_11_3, answer)


def longest_first(lengths, room, which):
    rows, left = [], []
    for n in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        if not (fits := [r for r in range(len(rows)) if left[r] >= lengths[n]]):
            fits = [len(rows)]
            rows.append([])
            left.append(room)
        r = which(fits, left)
        rows[r].append(n)
        left[r] -= lengths[n]
    return rows


def best_fit(lengths, room):
    return longest_first(lengths, room, lambda fits, left: min(fits, key=left.__getitem__))


def first_fit(lengths, room):
    return longest_first(lengths, room, lambda fits, left: fits[0])


def worst_fit(lengths, room):
    return longest_first(lengths, room, lambda fits, left: max(fits, key=left.__getitem__))


@pytest.mark.parametrize("answer", [best_fit, lambda *a: tuple(map(tuple, best_fit(*a)))])
def test_best_fit(answer, capsys):
    assert said(capsys, check_11_4, answer).startswith("Right.")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda lengths, room: pack(lengths, range(len(lengths)), room), "rows; longest first"),
        (lambda lengths, room: [[n] for n in range(len(lengths))], "rows; longest first"),
        (lambda lengths, room: [list(range(len(lengths)))], "there is room for"),
        (lambda lengths, room: best_fit(lengths, room)[1:], "every conversation"),
        (lambda lengths, room: [*best_fit(lengths, room), [0]], "in two rows"),
        (
            lambda lengths, room: [[lengths[n] for n in r] for r in best_fit(lengths, room)],
            "lengths",
        ),
        (lambda lengths, room: lengths.sort() or best_fit(lengths, room), "it changed the lengths"),
        (worst_fit, "least room"),
        (first_fit, "least room"),
        (lambda lengths, room: 7, "a list of rows"),
        (lambda lengths, room: None, "returns None"),
    ],
)
def test_a_wrong_packing_gets_its_hint(answer, hint, capsys):
    assert hint in said(capsys, check_11_4, answer)
