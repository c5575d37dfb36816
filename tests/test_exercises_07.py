"""The checks of chapter 07: right answers of any type pass, each mistake gets its own hint."""

import numpy as np
import pytest
import torch

from conftest import said
from nanogpt_course.checks.chapter_07 import (
    check_07_1,
    check_07_2,
    check_07_3,
    check_07_4,
    step_seconds,
)


@pytest.mark.parametrize("answer", [117, 117.0, np.int64(117), torch.tensor(117)])
def test_the_window_is_right_in_any_type(answer, capsys):
    assert said(capsys, check_07_1, answer).startswith("Right.")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (118, "count from 0"),
        (109, "swapped"),  # the same number for two mistakes: (3·8 + 2)·4 + 5 = (3·4 + 1)·8 + 5
        (85, "three whole ones"),
        (21, "micro-step 0"),
        (29, "rank 0 alone"),
        (101, "rank 0; two ranks"),
        (0, "32 windows"),
        ((3, 2, 5), "one number"),
        (None, "Nothing to check"),
    ],
)
def test_another_window_gets_its_hint(answer, hint, capsys):
    assert hint in said(capsys, check_07_1, answer)


@pytest.mark.parametrize("kind", [float, np.float64, torch.tensor])
def test_the_time_of_a_step_in_any_type(kind, capsys):
    def answer(*case):
        return kind(step_seconds(*case))

    assert said(capsys, check_07_2, answer).startswith("Right.")


def send(P, W, b):
    return 2 * (W - 1) / W * 4 * P / b


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda P, W, b, c, o: c + (1 - o) * send(P, W, b), "not a part of the sending"),
        (lambda P, W, b, c, o: c + send(P, W, b) - o * c, "less than no time"),
        (lambda P, W, b, c, o: c + send(P, W, b), "nothing is hidden yet"),
        (lambda P, W, b, c, o: c, "computing alone"),
        (lambda P, W, b, c, o: c + max(0, send(P, W, b) / 4 - o * c), "4 bytes"),
        (lambda P, W, b, c, o: c + max(0, send(P, W, b) / 2 - o * c), "sends every piece twice"),
        (lambda P, W, b, c, o: max(c, send(P, W, b)), "all of the computing"),
        (lambda P, W, b, c, o: c + max(0, 2 * 4 * P / b - o * c), "one process sends nothing"),
        (lambda P, W, b, c, o: c + max(0, send(P, W, b) - c), "all of the computing"),
        (lambda P, W, b, c, o: 1.0, "instead of"),
        (lambda P, W, b, c, o: None, "returns None"),
        (lambda P, W: 1.0, "TypeError"),
        (1.5, "the function itself"),
    ],
)
def test_a_wrong_time_gets_its_hint(answer, hint, capsys):
    assert hint in said(capsys, check_07_2, answer)


def weighted(gradients, rows):
    return sum(g * n for g, n in zip(gradients, rows, strict=True)) / sum(rows)


def by_matrix(gradients, rows):
    weights = torch.tensor(rows, dtype=torch.float32) / sum(rows)
    return weights @ torch.stack(gradients)


def in_numpy(gradients, rows):
    return np.average([g.numpy() for g in gradients], axis=0, weights=rows)


@pytest.mark.parametrize("answer", [weighted, by_matrix, in_numpy])
def test_the_mean_over_all_rows_however_computed(answer, capsys):
    assert said(capsys, check_07_3, answer).startswith("Right.")


def in_place(gradients, rows):
    for g, n in zip(gradients, rows, strict=True):
        g *= n
    return sum(gradients) / sum(rows)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda g, n: sum(g) / len(g), "mean of means"),
        (lambda g, n: sum(a * b for a, b in zip(g, n, strict=True)), "that is the sum"),
        (
            lambda g, n: sum(a * b for a, b in zip(g, n, strict=True)) / len(n),
            "number of rows of all",
        ),
        (lambda g, n: sum(g), "these are means"),
        (lambda g, n: g[0] * 5 / 8 + g[1] * 3 / 8, "shares of"),  # the first case by heart
        (in_place, "changes the gradients"),
        (lambda g, n: torch.stack(g), "return one gradient"),
        (lambda g, n: "mean", "return one tensor"),
        (lambda g, n: None, "returns None"),
        (lambda g: g, "TypeError"),
        (torch.zeros(5), "the function itself"),
    ],
)
def test_a_wrong_mean_gets_its_hint(answer, hint, capsys):
    assert hint in said(capsys, check_07_3, answer)


def right(slices, limit, all_reduce):
    norm = all_reduce([s.square().sum() for s in slices]) ** 0.5
    return [s * min(1.0, limit / norm) for s in slices]


def with_norms(slices, limit, all_reduce):
    norm = all_reduce([float(s.norm()) ** 2 for s in slices]) ** 0.5
    return tuple(s * (limit / norm) if norm > limit else s.clone() for s in slices)


@pytest.mark.parametrize("answer", [right, with_norms])
def test_clipped_slices_however_computed(answer, capsys):
    assert said(capsys, check_07_4, answer).startswith("Right.")


def sum_of_norms(slices, limit, all_reduce):
    norm = all_reduce([s.norm() for s in slices])
    return [s * min(1.0, limit / norm) for s in slices]


def peeking(slices, limit, all_reduce):
    all_reduce([0.0 for _ in slices])
    norm = torch.cat(slices).norm().item()
    return [s * min(1.0, limit / norm) for s in slices]


def without_root(slices, limit, all_reduce):
    norm = all_reduce([s.square().sum() for s in slices])
    return [s * min(1.0, limit / norm) for s in slices]


def always(slices, limit, all_reduce):
    norm = all_reduce([s.square().sum() for s in slices]) ** 0.5
    return [s * limit / norm for s in slices]


def each_alone(slices, limit, all_reduce):
    all_reduce([s.square().sum() for s in slices])
    return [s * min(1.0, limit / max(s.norm().item(), 1e-9)) for s in slices]


def in_the_same_tensors(slices, limit, all_reduce):
    norm = all_reduce([s.square().sum() for s in slices]) ** 0.5
    return [s.mul_(min(1.0, limit / norm)) for s in slices]


def reading_others(slices, limit, all_reduce):
    all_reduce([s.square().sum() for s in slices])
    norm = torch.cat(slices).norm()
    return [s * min(1.0, limit / norm) for s in slices]


def once_per_rank(slices, limit, all_reduce):
    norm = sum(all_reduce(s.square().sum()) for s in slices) ** 0.5
    return [s * min(1.0, limit / norm) for s in slices]


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (
            lambda s, limit, r: [t * min(1.0, limit / torch.cat(s).norm()) for t in s],
            "without all_reduce",
        ),
        (sum_of_norms, "norms do not add up"),
        (peeking, "what did each rank send"),
        (without_root, "norm²"),
        (always, "below the limit"),
        (each_alone, "its own norm"),
        (in_the_same_tensors, "have changed"),
        (reading_others, "not yours to read"),
        (once_per_rank, "not once per rank"),
        (lambda s, limit, r: r([1.0]), "one number from each"),
        (lambda s, limit, r: (r([t.square().sum() for t in s]), s[:1])[1], "return 2 tensors"),
        (lambda s, limit, r: None, "returns None"),
        (lambda s: s, "TypeError"),
    ],
)
def test_wrongly_clipped_slices_get_their_hint(answer, hint, capsys):
    assert hint in said(capsys, check_07_4, answer)
