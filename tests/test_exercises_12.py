"""The checks of chapter 12: right answers pass, each mistake gets its own hint."""

import math

import numpy as np
import pytest
import torch

from conftest import said
from nanogpt_course.checks.chapter_12 import (
    budget_for,
    check_12_1,
    check_12_2,
    check_12_3,
    check_12_4,
    total_cost,
    with_repeats,
)


@pytest.mark.parametrize("answer", [0.45, 0.4516, np.float32(0.45), torch.tensor(28 / 62)])
def test_the_exponent_in_any_type(answer, capsys):
    assert said(capsys, check_12_1, answer).startswith("Right.")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (0.548, "the text's exponent"),
        (0.5, "both exponents are equal"),
        (0.82, "stands below"),
        (45, "per cent"),
        (0.3, "same pace"),
        ("0.45", "one number"),
        (None, "Nothing to check"),
    ],
)
def test_another_exponent_gets_its_hint(answer, hint, capsys):
    assert hint in said(capsys, check_12_1, answer)


def by_grid(law, loss, S, points=20_000, factor=1.0):
    sizes = np.geomspace(1e3, 1e11, points)
    return sizes[np.argmin(total_cost(law, loss, S * factor, sizes))]


def by_loop(law, loss, S):
    best, least, N = None, math.inf, 1e3
    while N < 1e11:
        left = loss - law.E - law.A / N**law.alpha
        if left > 0:
            D = (law.B / left) ** (1 / law.beta)
            if (cost := 6 * N * D + 2 * N * S) < least:
                best, least = N, cost
        N *= 1.003
    return best


@pytest.mark.parametrize("answer", [by_grid, by_loop])
def test_a_model_that_is_used(answer, capsys):
    assert said(capsys, check_12_2, answer).startswith("Right.")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda law, loss, S: by_grid(law, loss, 0.0), "no difference"),
        (lambda law, loss, S: by_grid(law, loss, S, factor=3), "nothing goes backward"),
        (lambda law, loss, S: 10.0, "never reaches"),
        (lambda law, loss, S: by_grid(law, loss, S, points=100), "finer grid"),
        (lambda law, loss, S: 30 * by_grid(law, loss, S), "times the least"),
        (lambda law, loss, S: total_cost(law, loss, S, by_grid(law, loss, S)), "that is the cost"),
        (lambda law, loss, S: None, "returns None"),
        (lambda law: 1.0, "TypeError"),
    ],
)
def test_a_used_model_of_another_size_gets_its_hint(answer, hint, capsys):
    assert hint in said(capsys, check_12_2, answer)


def by_bisection(law, D):
    low, high = 1.0, 1e30
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if middle / (6 * law.best_size(middle)) < D else (low, middle)
    return low


@pytest.mark.parametrize("answer", [budget_for, by_bisection])
def test_the_budget_for_a_text(answer, capsys):
    assert said(capsys, check_12_3, answer).startswith("Right.")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda law, D: law.best_size(budget_for(law, D)), "asked is C"),
        (lambda law, D: budget_for(law, D) / 6, "the 6 is missing"),
        (lambda law, D: 6 * D * D / 20, "Chinchilla's law"),
        (lambda law, D: 6 * law.best_size(D) * D, "takes operations"),
        (lambda law, D: 2 * budget_for(law, D), "the best size reads"),
        (lambda law, D: 0, "above 0"),
        (lambda law, D: None, "returns None"),
    ],
)
def test_another_budget_gets_its_hint(answer, hint, capsys):
    assert hint in said(capsys, check_12_3, answer)


def by_cases(law, N, D, U, R_star=15.0):
    if D <= U:
        return law.loss(N, D)
    return law.loss(N, U * (1 + R_star * (1 - np.exp(-(D / U - 1) / R_star))))


@pytest.mark.parametrize("answer", [with_repeats, by_cases])
def test_repeated_text(answer, capsys):
    assert said(capsys, check_12_4, answer).startswith("Right.")


def one_too_many(law, N, D, U, R_star=15.0):
    if D <= U:
        return law.loss(N, D)
    return law.loss(N, U + U * R_star * (1 - math.exp(-(D / U) / R_star)))


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda law, N, D, U, R: law.loss(N, D), "for fresh text"),
        (lambda law, N, D, U, R: law.loss(N, min(D, U)), "for nothing"),
        (lambda law, N, D, U, R: with_repeats(law, N, max(D, U), U, R), "not read at all"),
        (one_too_many, "beyond the first"),
        (
            lambda law, N, D, U, R: with_repeats(law, N, D // U * U if D > U else D, U, R),
            "not rounded",
        ),
        (
            lambda law, N, D, U, R: law.loss(N, U + U * R * (1 - math.exp(-D / U / R))),
            "beyond the first",
        ),
        (
            lambda law, N, D, U, R: law.loss(N, U + U * R * (1 - math.exp((1 - D / U) / R))),
            "must not be negative",
        ),
        (lambda law, N, D, U, R: with_repeats(law, N, D, U), "R_star that is given"),
        (lambda law, N, D, U, R: D, "not the tokens"),
        (lambda law, N, D, U, R: with_repeats(law, 2 * N, D, U, R), "Replace D"),
        (lambda law, N, D, U, R: None, "returns None"),
    ],
)
def test_other_worths_of_repeats_get_their_hint(answer, hint, capsys):
    assert hint in said(capsys, check_12_4, answer)
