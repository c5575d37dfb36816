"""The checks of chapter 04: right answers of any type pass, each mistake gets its own hint."""

import math
import random

import numpy as np
import pytest
import torch

from conftest import said
from nanogpt_course.checks.chapter_04 import (
    batches,
    check_04_1,
    check_04_2,
    check_04_3,
    check_04_4,
)

FLOOR = 2 * math.log(2) / 128


@pytest.mark.parametrize("answer", [FLOOR, 0.0108, 0.011, np.float32(FLOOR), torch.tensor(FLOOR)])
def test_the_floor_is_right_in_any_type(answer, capsys):
    assert said(capsys, check_04_1, answer).startswith("Right.")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (0, "which row"),
        (math.log(2), "mean over all"),
        (2 * math.log(2), "sum over the batch"),
        (FLOOR / 2, "both rows"),
        (2 / 128, "in bits"),
        (math.log(2) / 2, "four rows"),
        (math.log(2) / 32, "there are four rows"),
        (1.0, "in doubt"),
        ("0.01", "one number"),
        (None, "Nothing to check"),
    ],
)
def test_a_wrong_floor_gets_its_hint(answer, hint, capsys):
    assert hint in said(capsys, check_04_1, answer)


def bits(loss, n_tokens, n_bytes):
    return loss / math.log(2) * n_tokens / n_bytes


@pytest.mark.parametrize("kind", [float, np.float32, torch.tensor])
def test_bits_per_byte_in_any_type(kind, capsys):
    assert said(capsys, check_04_2, lambda *a: kind(bits(*a))).startswith("Right.")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda loss, t, b: loss, "nats"),
        (lambda loss, t, b: loss * t / b, "nats"),
        (lambda loss, t, b: loss * math.log(2), "1.44"),
        (lambda loss, t, b: loss / math.log(2) * t, "whole text"),
        (lambda loss, t, b: loss / math.log(2), "only its part"),
        (lambda loss, t, b: loss / math.log(2) * b / t, "less than a token"),
        (lambda loss, t, b: 8.0, "all tokens"),
        (lambda loss, t, b: None, "returns None"),
        (1.0, "the function itself"),
        (lambda loss: loss, "TypeError"),
    ],
)
def test_wrong_bits_get_their_hint(answer, hint, capsys):
    assert hint in said(capsys, check_04_2, answer)


def by_division(n, B, T, W, rank):
    """Without a loop."""
    return max(1, (n - 1 - B * T * rank) // (B * T * W))


@pytest.mark.parametrize("answer", [batches, by_division])
def test_the_lectures_batches(answer, capsys):
    assert said(capsys, check_04_3, answer).startswith("Right.")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda *a: batches(*a, extra=0), "+ 1"),
        (lambda *a: batches(*a, offset=False), "B*T*rank"),
        (lambda *a: batches(*a) + 1, "one too many"),
        (lambda *a: batches(*a) - 1, "one too few"),
        (lambda n, B, T, W, rank: 190 if rank < 6 else 189, "right for the large file"),
        (lambda n, B, T, W, rank: n // (B * T), "B*T*rank"),
        (lambda n, B, T, W, rank: rank, "Follow the position"),
        (lambda *a: None, "returns None"),
        (190, "the function itself"),
    ],
)
def test_wrong_batches_get_their_hint(answer, hint, capsys):
    assert hint in said(capsys, check_04_3, answer)


class Mixture:
    """A right answer, and by its parts the wrong ones."""

    def __init__(self, first, second, share, seed):
        self.loaders, self.share, self.seed, self.count = (first, second), share, seed, 0

    def second(self) -> bool:
        return np.random.default_rng([self.seed, self.count]).random() >= self.share

    def next_batch(self):
        loader = self.loaders[int(self.second())]
        self.count += 1
        return loader.next_batch()

    def state_dict(self):
        return {"count": self.count, "loaders": [x.state_dict() for x in self.loaders]}

    def load_state_dict(self, state):
        self.count = state["count"]
        for loader, saved in zip(self.loaders, state["loaders"], strict=True):
            loader.load_state_dict(saved)


class ByPython(Mixture):
    def second(self):
        return random.Random(f"{self.seed}/{self.count}").random() >= self.share


class ByTorch(Mixture):
    def second(self):
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.count)
        return torch.rand(1, generator=generator).item() >= self.share


@pytest.mark.parametrize("answer", [Mixture, ByPython, ByTorch])
def test_a_mixture(answer, capsys):
    assert said(capsys, check_04_4, answer).startswith("Right.")


class Pattern(Mixture):
    def second(self):
        return (self.count + self.seed) % 4 >= 4 * self.share


class NoShare(Mixture):
    def second(self):
        return np.random.default_rng([self.seed, self.count]).random() >= 0.75


class Swapped(Mixture):
    def second(self):
        return not super().second()


class SeedPlusM(Mixture):
    def second(self):
        return np.random.default_rng(self.seed + self.count).random() >= self.share


class SeedTimesM(Mixture):
    def second(self):
        return np.random.default_rng(self.seed * self.count).random() >= self.share


class NoSeed(Mixture):
    def second(self):
        return np.random.default_rng(self.count).random() >= self.share


class Unrepeatable(Mixture):
    def second(self):
        return random.random() >= self.share


class Running(Mixture):
    """One generator, whose state is saved: it works, but the state is large."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rng = np.random.default_rng(self.seed)

    def second(self):
        return self.rng.random() >= self.share

    def state_dict(self):
        return {**super().state_dict(), "rng": self.rng.bit_generator.state}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.rng.bit_generator.state = state["rng"]


class NoCount(Mixture):
    def load_state_dict(self, state):
        super().load_state_dict({**state, "count": 0})


class NoLoaders(Mixture):
    def load_state_dict(self, state):
        self.count = state["count"]


class ReadsBoth(Mixture):
    def next_batch(self):
        pair = [loader.next_batch() for loader in self.loaders]
        chosen = pair[int(self.second())]
        self.count += 1
        return chosen


class Empty:
    def __init__(self, first, second, share, seed):
        pass

    def next_batch(self):
        pass


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (Pattern, "pattern"),
        (NoShare, "20% wanted"),
        (Swapped, "other way round"),
        (SeedPlusM, "don't add seed and m"),
        (SeedTimesM, "don't multiply seed and m"),
        (NoSeed, "another seed"),
        (Unrepeatable, "the same seed"),
        (Running, "plain numbers"),
        (NoCount, "Save the count"),
        (NoLoaders, "Save the count"),
        (ReadsBoth, "go on where it stopped"),
        (Empty, "returns None"),
        (lambda *a: None, "the class itself"),
        (None, "Nothing to check"),
    ],
)
def test_a_wrong_mixture_gets_its_hint(answer, hint, capsys):
    assert hint in said(capsys, check_04_4, answer)
