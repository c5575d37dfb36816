"""The checks of chapter 01: right answers of any type pass, each mistake gets its own hint."""

import json
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conftest import said
from nanogpt_course.checks.chapter_01 import check_01_1, check_01_2, check_01_3, check_01_4

COUNT = 125_226_240


@pytest.mark.parametrize("answer", [COUNT, float(COUNT), np.int64(COUNT), torch.tensor(COUNT)])
def test_the_number_of_parameters_is_right_in_any_type(answer, capsys):
    assert said(capsys, check_01_1, answer).startswith("Right.")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (2 * 124_439_808, "doubles every tensor"),
        (COUNT + 50257 * 768, "token table twice"),
        (124_439_808 + 2048 * 768, "some of the 2,048 rows"),
        (1024 * 768, "new rows alone"),
        (2048 * 768, "position table alone"),
        (124_439_808, "would it change"),
        (3, "fewer than before"),
        ("125226240", "one number"),
        ([COUNT, COUNT], "one number"),
        (torch.tensor([1, 2]), "one number"),
        (None, "Nothing to check"),
    ],
)
def test_a_wrong_number_gets_the_hint_for_its_mistake(answer, hint, capsys):
    assert hint in said(capsys, check_01_1, answer)


def thirds(weight):
    return [third.t() for third in weight.split(weight.shape[0], dim=1)]


@pytest.mark.parametrize(
    "split",
    [
        thirds,
        lambda w: tuple(thirds(w)),
        lambda w: (third for third in thirds(w)),
        lambda w: [third.double() for third in thirds(w)],
        lambda w: torch.stack(thirds(w)),
        lambda w: w.t().chunk(3),
        lambda w: [torch.nn.Parameter(third.contiguous()) for third in thirds(w)],
    ],
)
def test_any_way_to_split_c_attn_passes(split, capsys):
    assert said(capsys, check_01_2, split).startswith("Right.")


@pytest.mark.parametrize(
    ("split", "hint"),
    [
        (lambda w: None, "None so far"),
        (lambda w: w, "3 tensors"),
        (lambda w: w.split(768, dim=1), "C = 8"),  # the C of GPT-2
        (lambda w: w.split(8, dim=1), "stored (in, out)"),
        (lambda w: thirds(w)[::-1], "wrong order"),
        (lambda w: [thirds(w)[0]] * 3, "wrong order"),
        (lambda w: w.reshape(3, 8, 8), "dimension 1"),
        (lambda w: [third.bfloat16() for third in thirds(w)], "rounding"),
        (lambda w: [w, w, w], "(8, 24)"),
        (lambda w: [1, 2, 3], "3 tensors"),
        (lambda w: w.nonsense, "AttributeError"),
        ("split", "the function itself"),
    ],
)
def test_a_wrong_split_gets_the_hint_for_its_mistake(split, hint, capsys):
    assert hint in said(capsys, check_01_2, split)


def read_one(path, name, base=8, whole=False, shape=True, end=None):
    """Right by default; each argument is a mistake."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        entry = json.loads(file.read(length))[name]
        first, last = entry["data_offsets"]
        if whole:
            file.seek(0)
            size = -1 if whole is True else base + length + last
            data = file.read(size)[base + length + first : base + length + last]
        else:
            file.seek(base + length + first)
            size = -1 if end == "all" else last - first
            data = file.read(size)[: last - first]
    tensor = torch.frombuffer(bytearray(data), dtype=torch.float32)
    return tensor.view(entry["shape"]) if shape else tensor


def with_path_open(path, name):
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        entry = json.loads(file.read(length))[name]
        file.seek(8 + length + entry["data_offsets"][0])
        data = file.read(entry["data_offsets"][1] - entry["data_offsets"][0])
    return torch.tensor(np.frombuffer(data, dtype=np.float32)).reshape(entry["shape"])


@pytest.mark.parametrize("answer", [read_one, with_path_open])
def test_a_reader_that_seeks_passes(answer, capsys):
    assert said(capsys, check_01_3, answer).startswith("Right.")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda path, name: None, "None so far"),
        (lambda path, name: b"", "torch.frombuffer"),
        (lambda path, name: read_one(path, name, shape=False), "shape"),
        (lambda path, name: read_one(path, name, base=0), "8 + length"),
        (lambda path, name: read_one(path, name, whole=True), "seek, then read"),
        (lambda path, name: load_file(path)[name], "to a library"),
        (lambda path, name: read_one(path, name, whole="up to"), "seek, then read"),
        (lambda path, name: read_one(path, name, end="all"), "seek, then read"),
        (lambda path, name: torch.zeros(3), "offsets"),
        (lambda path, name: read_one(path, "c"), "KeyError"),
    ],
)
def test_a_wrong_reader_gets_the_hint_for_its_mistake(answer, hint, capsys):
    assert hint in said(capsys, check_01_3, answer)


def drop_layer(config, state, i, renumber=True, keep=(), only=None):
    shorter = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[1] == "h":
            layer = int(parts[2])
            if layer == (i if only is None else only):
                continue
            parts[2] = str(layer - (layer > (i if only is None else only)) * renumber)
        shorter[".".join(parts)] = tensor
    return {**config, "n_layer": config["n_layer"] - 1}, shorter


def untied(config, state, i):
    config, state = drop_layer(config, state, i)
    return config, {name: tensor.clone() for name, tensor in state.items()}


def in_place(config, state, i):
    shorter = drop_layer(config, state, i)
    config["n_layer"] -= 1
    return shorter


def textual(config, state, i):  # "h.1" also begins "h.10"
    kept = {name: tensor for name, tensor in state.items() if f".h.{i}" not in name}
    return {**config, "n_layer": 11}, kept


@pytest.mark.parametrize("answer", [drop_layer, lambda c, s, i: list(drop_layer(c, s, i))])
def test_a_checkpoint_without_the_block_passes(answer, capsys):
    assert said(capsys, check_01_4, answer).startswith("Right.")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda c, s, i: None, "None so far"),
        (lambda c, s, i: (c, s), "n_layer 11"),
        (lambda c, s, i: s, "(config, state)"),
        (lambda c, s, i: drop_layer(c, s, i, renumber=False), "number the blocks"),
        (lambda c, s, i: drop_layer(c, s, i, only=1), "another block"),
        (lambda c, s, i: drop_layer(c, s, i, only=11), "another block"),
        (untied, "very tensor of wte"),
        (in_place, "as they are"),
        (textual, "number the blocks"),
    ],
)
def test_a_wrong_checkpoint_gets_the_hint_for_its_mistake(answer, hint, capsys):
    assert hint in said(capsys, check_01_4, answer)
