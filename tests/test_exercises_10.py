"""The checks of chapter 10: right answers of any type pass, each mistake gets its own hint."""

import math

import numpy as np
import pytest
import torch

from conftest import said
from nanogpt_course.checks.chapter_10 import check_10_1, check_10_2, check_10_3, check_10_4, joined

STEPS = 76_293


@pytest.mark.parametrize("answer", [STEPS, float(STEPS), np.int64(STEPS), torch.tensor(STEPS)])
def test_the_number_of_steps_is_right_in_any_type(answer, capsys):
    assert said(capsys, check_10_1, answer).startswith("Right.")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (STEPS + 1, "would not be whole"),
        (40e9 / 524_288, "a whole number"),
        (80_000, "nickname"),
        (19_073, "10 billion"),
        (4 * 19_073, "Divide once"),
        (5, "rounded down"),
        ("76293", "one number"),
        (None, "Nothing to check"),
    ],
)
def test_a_wrong_number_of_steps_gets_its_hint(answer, hint, capsys):
    assert hint in said(capsys, check_10_1, answer)


def tokens(budget, flops, peak, price, mfu):
    return budget / price * 3600 * peak * mfu / flops


@pytest.mark.parametrize(
    "kind", [float, np.float64, lambda n: torch.tensor(n, dtype=torch.float64)]
)
def test_what_dollars_buy_is_right_in_any_type(kind, capsys):
    assert said(capsys, check_10_2, lambda *a: kind(tokens(*a))).startswith("Right.")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda b, f, k, p, m: tokens(b, f, k, p, m) / 3600, "per hour"),
        (lambda b, f, k, p, m: tokens(b, f, k, p, m) / 60, "3,600 seconds"),
        (lambda b, f, k, p, m: tokens(b, f, k, p, 1.0), "no card reaches"),
        (lambda b, f, k, p, m: tokens(b, f, k, p, 1 / m), "fewer tokens"),
        (lambda b, f, k, p, m: tokens(b, f, k, 1 / p, m), "higher price"),
        (lambda b, f, k, p, m: tokens(1.0, f, k, p, m), "one dollar"),
        (lambda b, f, k, p, m: 8 * tokens(b, f, k, p, m), "eight times as much"),
        (lambda *a: tokens(100.0, 855e6, 989e12, 3.0, 0.4), "for any budget"),
        (lambda *a: None, "returns None"),
        (lambda b, f: b, "TypeError"),
        (5.5e10, "the function itself"),
    ],
)
def test_a_wrong_budget_gets_its_hint(answer, hint, capsys):
    assert hint in said(capsys, check_10_2, answer)


def below(records, name, level):
    first = None
    for record in reversed([r for r in records if r.get(name) is not None]):
        if record[name] >= level:
            break
        first = record["step"]
    return first


def forward(records, name, level):
    pairs = [(r["step"], r[name]) for r in records if name in r]
    late = [i for i, (_, value) in enumerate(pairs) if not value < level]
    rest = pairs[late[-1] + 1 :] if late else pairs
    return rest[0][0] if rest else None


@pytest.mark.parametrize("answer", [below, forward])
def test_a_line_that_is_passed_for_good(answer, capsys):
    assert said(capsys, check_10_3, answer).startswith("Right.")


def first_below(records, name, level):
    return next((r["step"] for r in records if r.get(name, level) < level), None)


def last_crossing(records, name, level):
    """The last downward crossing, even if it is lost again."""
    pairs = [(r["step"], r[name]) for r in records if name in r]
    crossings = [
        step
        for (step, value), before in zip(pairs, [level, *(v for _, v in pairs)], strict=False)
        if value < level <= before
    ]
    return crossings[-1] if crossings else None


def one_ahead(records, name, level):
    """Only the next evaluation must stay below, too."""
    pairs = [(r["step"], r[name]) for r in records if name in r]
    for (step, value), (_, after) in zip(pairs, pairs[1:], strict=False):
        if value < level and after < level:
            return step
    return None


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (first_below, "step 30 is above again"),
        (last_crossing, "has not arrived"),
        (one_ahead, "not enough"),
        (lambda r, n, v: 40, "has not arrived"),
        (lambda r, n, v: below(r, "val_loss", v), "column that `name` names"),
        (lambda r, n, v: below(r, n, v + 1e-9), "equal to the level"),
        (lambda r, n, v: below(r, n, v) or None, "from step 0 on"),
        (lambda r, n, v: -1 if below(r, n, v) is None else below(r, n, v), "has not arrived"),
        (lambda r, n, v: 8, "its place in the list"),
        (lambda r, n, v: None, "returns None"),
        (lambda r, n, v: 7, "expected step 40"),
        (None, "Nothing to check"),
    ],
)
def test_a_line_passed_by_mistake_gets_its_hint(answer, hint, capsys):
    assert hint in said(capsys, check_10_3, answer)


def test_logs_are_joined(capsys):
    assert said(capsys, check_10_4, joined).startswith("Right.")
    assert said(capsys, check_10_4, lambda logs: tuple(joined(logs))).startswith("Right.")


def by_step(logs):
    """One record for each step: an evaluation swallows the training record."""
    return list({r["step"]: r for log in logs for r in log}.values())


def latest_of_each_step(logs):
    """For each step and kind the last record that any run has."""
    found = {(r["step"], *sorted(r)): r for log in logs for r in log}
    return sorted(found.values(), key=lambda r: (r["step"], "val_loss" in r))


def in_place(logs):
    out = joined(logs)
    logs[0].clear()
    return out


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda logs: [r for log in logs for r in log], "keeps everything"),
        (lambda logs: [r for r in joined(logs) if "train_loss" in r], "keep the evaluations"),
        (by_step, "each of the steps"),
        (lambda logs: sorted(by_step(logs), key=lambda r: r["step"]), "each of the steps"),
        (latest_of_each_step, "stopped early"),
        (lambda logs: logs, "flat list"),
        (lambda logs: joined(logs[:-1]), "each of the steps"),
        (lambda logs: joined(logs)[::-1], "order of steps"),
        (in_place, "as they are"),
        (lambda logs: None, "returns None"),
        (lambda logs: 3, "not int"),
    ],
)
def test_logs_joined_by_mistake_get_their_hint(answer, hint, capsys):
    assert hint in said(capsys, check_10_4, answer)


def test_an_empty_log_may_be_among_them(capsys):
    def first_record(logs):
        out = []
        for log in logs:
            out = [r for r in out if r["step"] < log[0]["step"]] + log
        return out

    assert "a log may be empty" in said(capsys, check_10_4, first_record)


def test_a_run_cuts_all_runs_before_it(capsys):
    def neighbours(logs):
        out = []
        for log, after in zip(logs, [*logs[1:], []], strict=True):
            end = after[0]["step"] if after else math.inf
            out += [r for r in log if r["step"] < end]
        return out

    assert "not only its neighbour" in said(capsys, check_10_4, neighbours)


def test_a_record_without_the_column_gets_its_hint(capsys):
    def every_record(records, name, level):
        return next(r["step"] for r in records if r[name] < level)

    assert "most records have no" in said(capsys, check_10_3, every_record)
