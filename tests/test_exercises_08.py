"""The checks of chapter 08: right answers of any type pass, each mistake gets its own hint."""

import numpy as np
import pytest
import torch

from conftest import said
from nanogpt_course.checks.chapter_08 import (
    check_08_1,
    check_08_2,
    check_08_3,
    check_08_4,
    check_08_5,
    repeated,
)
from nanogpt_lib.tokenizer import GPT2Tokenizer

EOT = 50256
tokenizer = GPT2Tokenizer()


@pytest.mark.parametrize(
    "answer", [(99, 53_989_344), [99.0, 53_989_344], np.array([99, 53_989_344])]
)
def test_shards_are_right_in_any_type(answer, capsys):
    assert said(capsys, check_08_1, answer).startswith("Right.")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        ((100, 53_989_344), "the validation shard takes"),
        ((53_989_344, 99), "shards first"),
        ((98, 53_989_344), "though it is not full"),
        ((99, 100_000_000), "how many tokens are left"),
        ((99, 46_010_656), "how many tokens are left"),
        ((95, 1), "with remainder"),
        ((99,), "two numbers"),
        (99, "two numbers"),
        (None, "Nothing to check"),
    ],
)
def test_other_shards_get_their_hint(answer, hint, capsys):
    assert hint in said(capsys, check_08_1, answer)


def by_counting(text):
    from collections import Counter

    lines = text.split("\n")
    copies = sum(len(line) * (n - 1) for line, n in Counter(lines).items())
    return copies / (sum(map(len, lines)) or 1)


@pytest.mark.parametrize("answer", [repeated, by_counting, lambda t: torch.tensor(repeated(t))])
def test_repeated_lines_however_counted(answer, capsys):
    assert said(capsys, check_08_2, answer).startswith("Right.")


def all_of_equal_lines(text):
    lines = text.split("\n")
    return sum(len(x) for x in lines if lines.count(x) > 1) / (sum(map(len, lines)) or 1)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda t: 100 * repeated(t), "not percent"),
        (lambda t: 1 - len(set(t.split("\n"))) / len(t.split("\n")), "count characters"),
        (all_of_equal_lines, "only the later ones"),
        (
            lambda t: repeated("\n".join(x.strip().lower() for x in t.split("\n"))),
            "exact copies only",
        ),
        (lambda t: by_counting(t) * sum(map(len, t.split("\n"))) / (len(t) or 1), "line breaks"),
        (lambda t: 0.0, "you say 0.000"),
        (lambda t: by_counting(t) if t else 1 / 0, "ZeroDivisionError"),
        (lambda t: None, "returns None"),
        (lambda t: "much", "one number"),
        (0.5, "the function itself"),
    ],
)
def test_a_wrong_share_gets_its_hint(answer, hint, capsys):
    assert hint in said(capsys, check_08_2, answer)


def per_token(text):
    return len(text.encode()) / len(tokenizer.encode(text))


@pytest.mark.parametrize("answer", [per_token, lambda t: np.float64(per_token(t))])
def test_bytes_per_token_pass(answer, capsys):
    assert said(capsys, check_08_3, answer).startswith("Right.")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda t: len(t) / len(tokenizer.encode(t)), "count bytes"),
        (lambda t: 1 / per_token(t), "upside down"),
        (lambda t: len(t.encode()) / len(t.split()), "bytes per word"),
        (lambda t: len(t.encode()), "divide by tokens"),
        (lambda t: len(t.encode("utf-16")) / len(tokenizer.encode(t)), "you say"),
        (lambda t: 4.0, "you say"),
        (lambda t: None, "returns None"),
        (lambda: 4.0, "TypeError"),
    ],
)
def test_wrong_bytes_per_token_get_their_hint(answer, hint, capsys):
    assert hint in said(capsys, check_08_3, answer)


def header_of(count, magic=20240520, version=1, kind=np.int32):
    header = np.zeros(256, dtype=kind)
    header[:3] = magic, version, count
    return header.tobytes()


def save(path, tokens):
    tokens = np.asarray(tokens)
    if tokens.min() < 0 or tokens.max() >= 2**16:
        raise ValueError("ids do not fit uint16")
    path.write_bytes(header_of(len(tokens)) + tokens.astype(np.uint16).tobytes())


def save_by_struct(path, tokens):
    import struct

    body = struct.pack(f"<256i{len(tokens)}H", 20240520, 1, len(tokens), *[0] * 253, *tokens)
    path.write_bytes(body)


def test_bin_files_pass(capsys):
    assert said(capsys, check_08_4, save).startswith("Right.")


def wrapping(path, tokens):
    tokens = np.asarray(tokens)
    path.write_bytes(header_of(len(tokens)) + tokens.astype(np.uint16).tobytes())


def only_too_large(path, tokens):
    if max(tokens) >= 2**16:
        raise ValueError
    wrapping(path, tokens)


def only_lists(path, tokens):
    tokens = np.array(tokens, dtype=np.uint16)  # raises for a list, wraps an array silently
    path.write_bytes(header_of(len(tokens)) + tokens.tobytes())


def writes_then_raises(path, tokens):
    wrapping(path, tokens)
    if min(tokens) < 0 or max(tokens) >= 2**16:
        raise ValueError


def asserts(path, tokens):
    assert min(tokens) >= 0 and max(tokens) < 2**16
    path.write_bytes(header_of(len(tokens)) + body(tokens))


def raises_half_way(path, tokens):
    with open(path, "wb") as file:
        file.write(header_of(len(tokens)))
        for token in tokens:
            if not 0 <= token < 2**16:
                raise ValueError
            file.write(np.uint16(token).tobytes())


def body(tokens, kind=np.uint16):
    return np.asarray(tokens).astype(kind).tobytes()


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda path, tokens: None, "there is no file"),
        (lambda path, t: path.write_bytes(body(t)), "header of 1,024 bytes comes first"),
        (lambda path, t: path.write_bytes(header_of(len(t)) + body(t, np.int32)), "four bytes per"),
        (lambda path, t: path.write_bytes(header_of(0, 0, 0, np.int16) + body(t)), "not of two"),
        (lambda path, t: path.write_bytes(b"garbage!" * 128 + body(t)), "not 20240520"),
        (lambda path, t: path.write_bytes(header_of(len(t), version=2) + body(t)), "the version"),
        (lambda path, t: path.write_bytes(header_of(2 * len(t)) + body(t)), "counts the tokens"),
        (
            lambda path, t: path.write_bytes(header_of(len(t))[:-4] + b"\1\0\0\0" + body(t)),
            "must be 0",
        ),
        (lambda path, t: path.write_bytes(header_of(len(t)) + body(t)[::-1]), "read back differ"),
        (wrapping, "nobody was told"),
        (only_too_large, "nobody was told"),
        (only_lists, "np.array([5, 65536]) does not fit"),
        (writes_then_raises, "a file was begun"),
        (raises_half_way, "a file was begun"),
        (asserts, "refuse with ValueError"),
        (lambda path: None, "TypeError"),
        ("file.bin", "the function itself"),
    ],
)
def test_a_wrong_file_gets_its_hint(answer, hint, capsys):
    assert hint in said(capsys, check_08_4, answer)


def mask(tokens):
    document = np.cumsum(np.asarray(tokens) == EOT)
    return (document[:, None] == document) & np.tri(len(document), dtype=bool)


def by_loop(tokens):
    T = len(tokens)
    out = [[False] * T for _ in range(T)]
    for t in range(T):
        for s in range(t + 1):
            out[t][s] = EOT not in list(tokens[s + 1 : t + 1])
    return out


@pytest.mark.parametrize("answer", [mask, by_loop, lambda t: torch.tensor(mask(t))])
def test_masks_pass(answer, capsys):
    assert said(capsys, check_08_5, answer).startswith("Right.")


def eot_ends(tokens):
    eot = np.asarray(tokens) == EOT
    document = np.cumsum(eot) - eot
    return (document[:, None] == document) & np.tri(len(document), dtype=bool)


def first_document_forgotten(tokens):
    document = np.cumsum(np.asarray(tokens) == EOT)
    return mask(tokens) & (document > 0)[:, None]


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda t: mask(t).T, "swapped"),
        (lambda t: np.cumsum(t == EOT)[:, None] == np.cumsum(t == EOT), "a later one"),
        (lambda t: np.tri(len(t), dtype=bool), "still see each other"),
        (eot_ends, "that it begins"),
        (lambda t: mask(t) & ~np.eye(len(t), dtype=bool), "look at itself"),
        (first_document_forgotten, "token 0 may look"),
        (lambda t: mask(t)[0], "one row and one column"),
        (lambda t: "mask", "one row and one column"),
        (lambda t: None, "returns None"),
        (lambda: None, "TypeError"),
    ],
)
def test_a_wrong_mask_gets_its_hint(answer, hint, capsys):
    assert hint in said(capsys, check_08_5, answer)
