"""Small tasks in sentences, with answers that a program can check.

    make_task("reverse", rng)  →  Task("reverse", "Spell tavo backwards.", "ovat")

Every task is drawn from a seeded generator. What is held out of training is decided by the task
itself, never by chance: an *item* (the word, the numbers) by a hash of it, a *length* by its range,
a *wording* by its place in the list. So no training set can contain them, however large it is.
"""

import random
import zlib
from typing import NamedTuple


class Task(NamedTuple):
    """A question and its only right answer."""

    kind: str
    question: str
    answer: str


# The last wording of each kind is held out.
WORDINGS = {
    "copy": ["Say {}.", "Repeat the word {}.", "Write {} once more.", "Please say {} again."],
    "reverse": [
        "Spell {} backwards.", "Reverse the word {}.", "What is {} from right to left?",
        "Write {} backwards.",
    ],
    "count": [
        "How many times does {} occur in {}?", "Count the letter {} in {}.",
        "How often is {} in {}?", "How many letters {} are in {}?",
    ],
    "sort": [
        "Sort {}.", "Put {} in order.", "Write {} from small to large.", "Arrange {} by size.",
    ],
    "add": ["What is {} plus {}?", "Add {} and {}.", "{} + {} =", "How much is {} and {}?"],
    "find": [
        "{} What colour is the {}?", "{} Which colour has the {}?", "{} The {} is", 
        "{} Name the colour of the {}.",
    ],
}  # fmt: skip
KINDS = tuple(WORDINGS)
FREQUENCY = (1, 1, 3, 1, 3, 1)  # counting and adding are harder, so they come more often
COLOURS = "red blue green black white grey pink brown".split()
THINGS = "hat cup pen box car door lamp coat book bag".split()
LENGTHS = {  # of training, and held out: letters, letters, letters, numbers, digits, things
    "copy": ((3, 7), (8, 10)),
    "reverse": ((3, 5), (6, 7)),
    "count": ((3, 5), (6, 8)),
    "sort": ((3, 4), (5, 6)),
    "add": ((1, 2), (3, 3)),
    "find": ((2, 3), (4, 5)),
}


def held_out_item(item: str) -> bool:
    """Whether an item is among the tenth that training never sees."""
    return zlib.crc32(item.encode()) % 10 == 0


def word(rng: random.Random, length: int) -> str:
    """A pronounceable word: consonants and vowels in turn."""
    letters = ("bdfgklmnprstvz", "aeiou")
    first = rng.randrange(2)
    return "".join(rng.choice(letters[(first + i) % 2]) for i in range(length))


def draw_item(kind: str, rng: random.Random, length: int) -> tuple[str, tuple[str, ...], str]:
    """A text that identifies the item, what its wording is filled with, and the answer."""
    if kind in ("copy", "reverse"):
        w = word(rng, length)
        return w, (w,), w if kind == "copy" else w[::-1]
    if kind == "count":
        w = word(rng, length)
        often = max(w, key=w.count)  # else nearly every answer would be 1
        letter = rng.choice([rng.choice(w), often, often, rng.choice("aeioubdfgk")])
        return letter + w, (letter, w), str(w.count(letter))
    if kind == "sort":
        numbers = [rng.randrange(10) for _ in range(length)]
        text = " ".join(map(str, numbers))
        return text, (text,), " ".join(map(str, sorted(numbers)))
    if kind == "add":
        a, b = (rng.randrange(10 ** (length - 1) if length > 1 else 0, 10**length) for _ in "ab")
        return f"{a}+{b}", (str(a), str(b)), str(a + b)
    things, colours = rng.sample(THINGS, length), rng.choices(COLOURS, k=length)
    text = " ".join(f"The {t} is {c}." for t, c in zip(things, colours, strict=True))
    asked = rng.randrange(length)
    return text + things[asked], (text, things[asked]), colours[asked]


def make_task(
    kind: str,
    rng: random.Random,
    items: str = "known",
    lengths: str = "known",
    wordings: str = "known",
) -> Task:
    """One task of a kind; each of items, lengths and wordings is "known" or "held out".

    Known items are the nine tenths that may be trained on.
    """
    known, other = LENGTHS[kind]
    while True:
        length = rng.randint(*(known if lengths == "known" else other))
        item, filling, answer = draw_item(kind, rng, length)
        if held_out_item(item) == (items == "held out"):
            break
    *usual, last = WORDINGS[kind]
    wording = rng.choice(usual) if wordings == "known" else last
    return Task(kind, wording.format(*filling), answer)


def conversation(rng: random.Random, items: str = "known") -> list[dict]:
    """One to three tasks as messages with role and content; known lengths and wordings."""
    messages = []
    for kind in rng.choices(KINDS, FREQUENCY, k=rng.randint(1, 3)):
        task = make_task(kind, rng, items)
        messages.append({"role": "user", "content": task.question})
        messages.append({"role": "assistant", "content": task.answer})
    return messages


def some_tasks(kind: str, count: int, seed: int = 0, **held_out: str) -> list[Task]:
    """Always the same tasks of a kind; the options are those of make_task."""
    rng = random.Random(f"{kind} {seed}")
    return [make_task(kind, rng, **held_out) for _ in range(count)]
