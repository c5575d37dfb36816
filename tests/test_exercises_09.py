"""The checks of chapter 09: right answers of any type pass, each mistake gets its own hint."""

import re

import numpy as np
import pytest
import torch

from conftest import said
from nanogpt_course.checks.chapter_09 import check_09_1, check_09_2, check_09_3, check_09_4, tree

FOUR, TWO = 5_242_880, 1_310_720


@pytest.mark.parametrize(
    "answer",
    [(FOUR, TWO), [float(FOUR), TWO], np.array([FOUR, TWO]), torch.tensor([FOUR, TWO])],
)
def test_tokens_read_are_right_in_any_type(answer, capsys):
    assert said(capsys, check_09_1, answer).startswith("Right.")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        ((TWO, FOUR), "four GPUs first"),
        ((FOUR // 4, TWO // 2), "batches of its own"),
        ((FOUR, 2 * TWO), "32 rows each"),
        ((FOUR // 20, TWO // 20), "twenty"),
        ((FOUR // 1024, TWO // 1024), "those are rows"),
        ((FOUR, FOUR), "GPUs × micro-batches"),
        ((FOUR,), "give two numbers"),
        (FOUR, "in a tuple"),
        ("ab", "one number"),
        (None, "Nothing to check"),
    ],
)
def test_wrong_tokens_read_get_their_hint(answer, hint, capsys):
    assert hint in said(capsys, check_09_1, answer)


def variance(p):
    return p * (1 - p)


def errors(p, q, n):
    return (q - p) / ((variance(p) + variance(q)) / n) ** 0.5


def pooled(p, q, n):
    return (q - p) / (2 * variance((p + q) / 2) / n) ** 0.5


@pytest.mark.parametrize(
    "answer",
    [
        errors,
        pooled,
        lambda p, q, n: errors(q, p, n),
        lambda p, q, n: abs(errors(p, q, n)),
        lambda p, q, n: np.float64(errors(p, q, n)),
        lambda p, q, n: torch.tensor(errors(p, q, n)),
    ],
)
def test_standard_errors_either_way_round(answer, capsys):
    assert said(capsys, check_09_2, answer).startswith("Right.")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda p, q, n: 1.576, "whatever the scores"),
        (lambda p, q, n: errors(0.2955, 0.3057, n), "expected 1.576"),
        (lambda p, q, n: q - p, "the difference itself"),
        (lambda p, q, n: ((variance(p) + variance(q)) / n) ** 0.5, "the standard error; divide"),
        (lambda p, q, n: (q - p) / (2 * variance(p) / n) ** 0.5, "a variance of its own"),
        (lambda p, q, n: (q - p) / (2 * variance(q) / n) ** 0.5, "a variance of its own"),
        (lambda p, q, n: (q - p) / (variance(p) / n) ** 0.5, "variances add up"),
        (lambda p, q, n: (q - p) / (variance(q) / n) ** 0.5, "variances add up"),
        (
            lambda p, q, n: (q - p) / ((variance(p) / n) ** 0.5 + (variance(q) / n) ** 0.5),
            "add first",
        ),
        (lambda p, q, n: (q - p) / ((variance(p) + variance(q)) / n), "take its root"),
        (lambda p, q, n: errors(p, q, 1), "divide the variances by n"),
        (lambda p, q, n: errors(p, q, n**2), "under the root"),
        (lambda p, q, n: errors(p, q, 1 / n), "divide by n"),
        (lambda p, q, n: errors(p, q, 10_042), "expected 1.576"),
        (lambda p, q, n: 2 * errors(p, q, n), "expected 1.576"),
        (lambda p, q, n: "1.576", "one number"),
        (lambda p, q, n: None, "returns None"),
        (lambda p, q: p, "TypeError"),
        (1.576, "the function itself"),
        (None, "Nothing to check"),
    ],
)
def test_wrong_standard_errors_get_their_hint(answer, hint, capsys):
    assert hint in said(capsys, check_09_2, answer)


def harness(raw, second=str.capitalize, title=". ", pattern=r"\[.*?\]", strip=str.strip):
    text = strip(f"{raw['activity_label']}: {raw['ctx_a']} {second(raw['ctx_b'])}")
    return re.sub(pattern, "", text.replace(" [title]", title)).replace("  ", " ")


def stripped_last(raw):
    return harness(raw, strip=str).strip()


@pytest.mark.parametrize("answer", [harness, stripped_last])
def test_the_text_of_the_harness(answer, capsys):
    assert said(capsys, check_09_3, answer).startswith("Right.")


def first_letter(text):
    return text[:1].upper() + text[1:]


def brackets_first(raw):
    text = re.sub(r"\[.*?\]", "", f"{raw['activity_label']}: {raw['ctx_a']} ")
    text = (text + raw["ctx_b"].capitalize()).strip()
    return text.replace(" [title]", ". ").replace("  ", " ")


def double_spaces(raw):
    text = f"{raw['activity_label']}: {raw['ctx_a']} {raw['ctx_b'].capitalize()}".strip()
    return re.sub(r"\[.*?\]", "", text.replace(" [title]", ". "))


def in_place(raw):
    raw["ctx_b"] = raw["ctx_b"].capitalize()
    return harness(raw)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda raw: raw["ctx"], "label and a colon"),
        (lambda raw: harness(raw).replace(": ", ":"), "follows the colon"),
        (lambda raw: harness(raw, second=str.title), "that is `title`"),
        (lambda raw: harness(raw, second=str), "a capital letter"),
        (lambda raw: harness(raw, second=first_letter), "the rest lower case"),
        (
            lambda raw: harness(raw | {"ctx_a": raw["ctx_a"].capitalize()}),
            "capitalize `ctx_b` alone",
        ),
        (lambda raw: harness(raw, strip=str), "strip: with an empty"),
        (lambda raw: harness(raw, pattern=r"\[.*\]"), "too much is gone"),
        (lambda raw: harness(raw, pattern=r"\[step\]"), "a bracket is left"),
        (lambda raw: harness(raw, title=""), "before the other brackets"),
        (brackets_first, "before the other brackets"),
        (double_spaces, "double spaces"),
        (in_place, "as it is"),
        (lambda raw: "Family Life: How to pack. Make a list. Write down what you need. You", "exp"),
        (lambda raw: [harness(raw)], "not list"),
        (lambda raw: None, "returns None"),
        (None, "Nothing to check"),
    ],
)
def test_another_text_gets_its_hint(answer, hint, capsys):
    assert hint in said(capsys, check_09_3, answer)


def nested(item):
    """The same as the check's own, by a tree of dictionaries."""
    root: dict = {}
    for ending in item.endings:
        node = root
        for token in item.context + ending[:-1]:
            node = node.setdefault(token, {})

    def count(node):
        return sum(1 + count(child) for child in node.values())

    return count(root)


@pytest.mark.parametrize(
    "answer", [tree, nested, lambda item: float(tree(item)), lambda item: np.int64(tree(item))]
)
def test_every_common_beginning_is_read_once(answer, capsys):
    assert said(capsys, check_09_4, answer).startswith("Right.")


def rows(item, cut=-1):
    return [item.context + ending[:cut] for ending in item.endings]


def common(item):
    """Only what all four endings share, beyond the context."""
    full = rows(item)
    shared = 0
    while all(len(row) > shared and row[shared] == full[0][shared] for row in full):
        shared += 1
    return shared + sum(len(row) - shared for row in full)


def with_the_last(item):
    whole = [item.context + ending for ending in item.endings]
    return len({tuple(row[:n]) for row in whole for n in range(1, len(row) + 1)})


def popped(item):
    for ending in item.endings:
        ending.pop()
    whole = [item.context + ending for ending in item.endings]
    return len({tuple(row[:n]) for row in whole for n in range(1, len(row) + 1)})


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda item: len({t for row in rows(item) for t in row}), "in two places"),
        (
            lambda item: len({pair for row in rows(item) for pair in enumerate(row)}),
            "only beginnings",
        ),
        (
            lambda item: len(item.context) + len({t for e in item.endings for t in e[:-1]}),
            "read again",
        ),
        (
            lambda item: (
                len(item.context)
                + len(
                    {
                        (i, *e[max(0, i - 1) : i + 1])
                        for e in item.endings
                        for i in range(len(e) - 1)
                    }
                )
            ),
            "only beginnings",
        ),
        (common, "more than once"),
        (lambda item: sum(map(len, rows(item))), "four times"),
        (with_the_last, "never read"),
        (lambda item: len(item.context), "context alone"),
        (lambda item: tree(item) - len(item.context), "endings alone"),
        (lambda item: 7, "read again"),
        (popped, "as it is"),
        (lambda item: 5, "expected 7"),
        (lambda item: rows(item), "one number"),
        (lambda item: None, "returns None"),
        (7, "the function itself"),
        (None, "Nothing to check"),
    ],
)
def test_another_number_of_tokens_gets_its_hint(answer, hint, capsys):
    assert hint in said(capsys, check_09_4, answer)
