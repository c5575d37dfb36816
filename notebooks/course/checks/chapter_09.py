"""Checks of chapter 09's exercises: tokens read, standard errors, the harness's text, a tree."""

import random
from copy import deepcopy

from nanogpt_course.checks import Wrong, as_number, call, exercise, hint
from nanogpt_lib.hellaswag import Item


@exercise(
    "A quarter of the tokens, and another validation loss for the very same model. That is why "
    "`validation_loss` is told how many tokens to read, whatever the number of processes and rows."
)
def check_09_1(answer) -> None:
    """Tokens that four GPUs with 64 rows and two with 32 rows read in 20 micro-batches."""
    try:
        given = [as_number(number) for number in answer]
    except TypeError as error:
        raise Wrong("give two numbers of tokens, in a tuple") from error
    hint(len(given) != 2, "give two numbers: for four GPUs, and for two.")
    micro = 20 * 1024
    right = [4 * 64 * micro, 2 * 32 * micro]
    hint(given == right[::-1], "the four GPUs first, please.")
    hint(given == [64 * micro, 32 * micro], "every GPU reads batches of its own.")
    hint(given == [4 * 64 * micro, 2 * 64 * micro], "the two GPUs have 32 rows each.")
    hint(given == [4 * 64 * micro, 4 * 32 * micro], "the second case has two GPUs.")
    hint(given == [n // 20 for n in right], "that is one micro-batch; there are twenty.")
    hint(given == [n // 1024 for n in right], "those are rows; a row has 1,024 tokens.")
    hint(given != right, "GPUs × micro-batches × rows × tokens per row.")


SCORES = [(0.2955, 0.3057, 10_042), (0.25, 0.5, 32), (0.4, 0.38, 900), (0.3, 0.6, 50)]


@exercise(
    "1.6 on 10,042 items, 0.1 on 32: neither is clearly more than chance. But both models answer "
    "the same items, so their scores are not independent: count only the items on which they "
    "disagree, and a smaller difference becomes visible."
)
def check_09_2(answer) -> None:
    """The difference of two scores by its standard error, either way round, pooled or not."""
    given = [as_number(call(answer, *case)) for case in SCORES]

    def error(p: float, q: float, n: float) -> float:
        return ((p * (1 - p) + q * (1 - q)) / n) ** 0.5

    def pooled(p: float, q: float, n: float) -> float:
        mean = (p + q) / 2
        return (2 * mean * (1 - mean) / n) ** 0.5

    def one(p: float, q: float, n: float) -> float:
        return (p * (1 - p) / n) ** 0.5

    def by(measure) -> bool:
        values = [(q - p) / measure(p, q, n) for p, q, n in SCORES]
        signs = [1, -1] if any(value < 0 for value in given) else [0]
        return any(
            all(
                abs(got - (sign * value if sign else abs(value))) < 1e-4 * abs(value)
                for got, value in zip(given, values, strict=True)
            )
            for sign in signs
        )

    hint(len(set(given)) == 1, "that is one number, whatever the scores; use p, q and n.")
    hint(by(lambda p, q, n: 1), "that is the difference itself; divide by its standard error.")
    hint(
        all(abs(got - error(*case)) < 1e-9 for got, case in zip(given, SCORES, strict=True)),
        "that is the standard error; divide the difference by it.",
    )
    hint(
        by(lambda p, q, n: 2**0.5 * one(p, p, n)) or by(lambda p, q, n: 2**0.5 * one(q, q, n)),
        "each score has a variance of its own: p(1 - p) / n and q(1 - q) / n.",
    )
    hint(
        by(one) or by(lambda p, q, n: one(q, q, n)),
        "both scores are uncertain; their variances add up.",
    )
    hint(
        by(lambda p, q, n: one(p, p, n) + one(q, q, n)),
        "variances add up, not standard errors: add first, then take the root.",
    )
    hint(by(lambda p, q, n: error(p, q, n) ** 2), "that divides by the variance; take its root.")
    hint(by(lambda p, q, n: error(p, q, 1)), "more items, less error: divide the variances by n.")
    hint(by(lambda p, q, n: error(p, q, n**2)), "n belongs under the root.")
    hint(by(lambda p, q, n: error(p, q, 1 / n)), "more items, less error: divide by n.")
    hint(
        not (by(error) or by(pooled)),
        f"for 0.2955 and 0.3057 on 10,042 items you have {given[0]:.4g}; expected 1.576.",
    )


WIKIHOW = {
    "activity_label": "Family Life",
    "ctx_a": "[header] How to pack [title] Make a list. [step] Write down what you need.",
    "ctx_b": "you",
}
ACTIVITY = {
    "activity_label": "Washing dishes",
    "ctx_a": "A man stands at a sink.",
    "ctx_b": "then he and Anna",
}
ALONE = {"activity_label": "Sailing", "ctx_a": "A boat leaves the harbour.", "ctx_b": ""}


@exercise(
    "lm-eval cleans the endings alike. With both, the rules “sum” and “per byte” are the "
    "harness's `acc` and `acc_norm`."
)
def check_09_3(answer) -> None:
    """The context as lm-eval writes it: a wikiHow item, a caption, one without a second part."""
    texts = []
    for raw in (WIKIHOW, ACTIVITY, ALONE):
        question = raw | {"ctx": f"{raw['ctx_a']} {raw['ctx_b']}".strip()}
        untouched = dict(question)
        text = call(answer, question)
        hint(not isinstance(text, str), f"return one string, not {type(text).__name__}.")
        hint(question != untouched, "leave the question that you were given as it is.")
        texts.append(text)
    wikihow, activity, alone = texts
    hint(not wikihow.startswith("Family Life:"), "the activity label and a colon come first.")
    hint(not wikihow.startswith("Family Life: "), "a space follows the colon.")
    hint("[" in wikihow or "]" in wikihow, f"a bracket is left in {wikihow!r}.")
    hint("make a list" in wikihow, "capitalize `ctx_b` alone; `ctx_a` stays as it is.")
    hint(
        "Make a list" not in wikihow,
        "too much is gone: `.*` runs to the last bracket, `.*?` only to the next one.",
    )
    hint("  " in wikihow, f"double spaces are left in {wikihow!r}.")
    hint(
        "pack Make" in wikihow,
        "replace ' [title]' by '. ' before the other brackets go, and with the space before it.",
    )
    hint("pack ." in wikihow, "the space before [title] goes, too.")
    hint("need. you" in wikihow or "then he" in activity, "`ctx_b` begins with a capital letter.")
    hint("He And" in activity, "that is `title`; `capitalize` changes only the first word.")
    hint(
        activity.endswith("Then he and Anna"),
        "the harness uses `str.capitalize`, which also makes the rest lower case.",
    )
    hint(alone.endswith(" "), "strip: with an empty `ctx_b` a space is left at the end.")
    right = [
        "Family Life: How to pack. Make a list. Write down what you need. You",
        "Washing dishes: A man stands at a sink. Then he and anna",
        "Sailing: A boat leaves the harbour.",
    ]
    for text, expected in zip(texts, right, strict=True):
        hint(text != expected, f"{text!r}, expected {expected!r}.")


def item_of(context: list[int], *endings: list[int]) -> Item:
    """An item of made-up tokens."""
    return Item(context, list(endings), [1] * len(endings), 0)


def tree(item: Item) -> int:
    """What check 4 expects: every distinct beginning of a row, once."""
    rows = [item.context + ending[:-1] for ending in item.endings]
    return len({tuple(row[:n]) for row in rows for n in range(1, len(row) + 1)})


@exercise(
    "On the real validation items such a tree saves 0.8 of 158.6 tokens per item beyond the shared "
    "context, because endings part at their first or second word. Hence the library's trees have "
    "one trunk and four straight branches."
)
def check_09_4(answer) -> None:
    """Every distinct beginning once: forks, repeated tokens, the same token on another branch."""

    def read(item: Item) -> float:
        untouched = deepcopy(item)
        number = as_number(call(answer, item))
        hint(item != untouched, "leave the item that you were given as it is.")
        return number

    got = read(item_of([1, 2, 3], [7, 8, 9], [7, 8, 5, 4], [6], [7, 1, 2]))
    hint(got == 4 * 3 + 7, "that reads the context four times.")
    hint(got == 3 + 7, "the context is shared, but 7 and 7 8 are still read more than once.")
    hint(got == 11, "the last token of an ending is predicted, never read.")
    hint(got == 3, "that is the context alone; the endings must be read, too.")
    hint(got == 4, "those are the endings alone; the context must be read once.")
    hint(
        got == 6,
        "a token in two places is read twice, and after another beginning it is another thing.",
    )
    hint(got != 7, f"{got}, expected 7: the context, and 7, 7 8, 7 8 5, 7 1 after it.")
    hint(
        read(item_of([1, 1, 2, 1], [5, 5, 5, 9], [5, 9], [6, 9], [1, 9])) != 4 + 5,
        "a token that occurs again, in another place, is read again.",
    )
    hint(
        read(item_of([1], [5, 6, 4, 9], [7, 6, 4, 9], [5, 9], [8, 9])) != 1 + 7,
        "only beginnings can be shared: the same token in the same place after another token is "
        "another thing.",
    )
    hint(
        read(item_of([1, 2], [5, 6, 9], [5, 6, 9], [7, 6, 9], [7, 6, 9])) != 2 + 4,
        "two pairs of endings may begin alike; share within each pair.",
    )
    hint(read(item_of([1, 2], [5], [6], [7], [8])) != 2, "of an ending of one token none is read.")
    dice = random.Random(9)
    for _ in range(50):
        endings = [[dice.randrange(3) for _ in range(dice.randint(1, 5))] for _ in range(4)]
        item = item_of([dice.randrange(3) for _ in range(dice.randint(1, 5))], *endings)
        hint(read(item) != tree(item), f"{read(item)}, expected {tree(item)} for {item}.")
