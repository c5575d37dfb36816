"""Checks of chapter 08's exercises: shards, repeated lines, bytes per token, a file, a mask."""

import math
import tempfile
from pathlib import Path

from nanogpt_course.checks import Wrong, as_number, call, exercise, hint


@exercise(
    "The last shard is half empty, and nothing is lost: a run reads across the borders of shards, "
    "so their size is only a matter of convenience."
)
def check_08_1(answer) -> None:
    """Training shards, and tokens in the last one."""
    try:
        given = [as_number(number) for number in answer]
    except TypeError as error:
        raise Wrong("give two numbers: training shards, and tokens in the last one") from error
    hint(len(given) != 2, "give two numbers: training shards, and tokens in the last one.")
    right = [99, 53_989_344]
    hint(given == right[::-1], "the number of shards first, please.")
    hint(given[0] == 100, "the validation shard takes the first 100 million tokens.")
    hint(given[0] == 98, "the last shard counts, though it is not full.")
    hint(
        given[0] == 99 and given[1] in (100_000_000, 46_010_656),
        "how many tokens are left for the last shard, after 98 full ones?",
    )
    hint(
        given != right, "take off the validation shard, then divide by 100 million with remainder."
    )


def repeated(text: str) -> float:
    """The right answer of exercise 2."""
    lines, seen, copies = text.split("\n"), set(), 0
    for line in lines:
        copies += len(line) * (line in seen)
        seen.add(line)
    return copies / max(1, sum(map(len, lines)))


LINES = [
    "a long first line\nshort\na long first line",
    "one\ntwo\nthree",
    "buy now\nbuy now\nbuy now\nwe are open on Sundays, too",
    "",
    "Chapter\nchapter\nChapter ",
    "\n\nx\n\n",
]


@exercise(
    "Gopher drops a page above 20 % (and above 30 % of the lines, counted): menus, footers and "
    "product lists, which an extractor has let through."
)
def check_08_2(answer) -> None:
    """The share of characters in copies of earlier lines."""
    for text in LINES:
        value, right = as_number(call(answer, text)), repeated(text)
        lines = text.split("\n")
        total = max(1, sum(map(len, lines)))
        by_lines = 1 - len(set(lines)) / len(lines)
        with_first = sum(len(line) for line in lines if lines.count(line) > 1) / total
        folded = repeated("\n".join(line.strip().lower() for line in lines))
        shown = repr(text)

        def near(other: float, value: float = value) -> bool:
            return math.isclose(value, other, abs_tol=1e-6)

        hint(near(right * 100) and right > 0, "a share between 0 and 1, please, not percent.")
        hint(near(by_lines) and not near(right), f"for {shown} you count lines; count characters.")
        hint(
            near(with_first) and not near(right),
            f"for {shown}: the first of equal lines is no copy; only the later ones count.",
        )
        hint(
            near(folded) and not near(right),
            f"for {shown}: exact copies only; upper case and spaces make a difference here.",
        )
        hint(
            near(right * total / max(1, len(text))) and not near(right),
            f"for {shown}: line breaks are not counted, in either number.",
        )
        hint(not near(right), f"{shown} has {right:.3f}, you say {value:.3f}.")


@exercise(
    "On this vocabulary English gets four bytes a token and Chinese one and a half. A context of "
    "1,024 tokens is a long page of English and a short one of Chinese."
)
def check_08_3(answer) -> None:
    """Bytes of UTF-8 per GPT-2 token, for several scripts."""
    from nanogpt_lib.tokenizer import GPT2Tokenizer

    tokenizer = GPT2Tokenizer()
    texts = ["Hello, I'm a language model,", "übermäßig", "你好，世界", "    return x + 1", "🙂"]
    for text in texts:
        value = as_number(call(answer, text))
        size, count = len(text.encode("utf-8")), len(tokenizer.encode(text))
        right, characters = size / count, len(text) / count
        hint(
            math.isclose(value, characters) and not math.isclose(right, characters),
            f"for {text!r} you count characters; count bytes of UTF-8.",
        )
        hint(math.isclose(value, count / size), "upside down: bytes for each token.")
        hint(
            math.isclose(value, size / len(text.split())) and len(text.split()) != count,
            "that is bytes per word; tokens are what GPT-2's tokenizer makes.",
        )
        hint(
            math.isclose(value, float(size)) and count > 1, "these are all bytes; divide by tokens."
        )
        hint(
            not math.isclose(value, right),
            f"{text!r} has {right:.3f} bytes per token, you say {value:.3f}.",
        )


@exercise(
    "That is a whole format: a header that says what it is, and a row of numbers. `--data` of our "
    "train.py reads a folder of such files as it is."
)
def check_08_4(answer) -> None:
    """A file that our own reader opens, and no file for ids that do not fit."""
    import numpy as np

    from nanogpt_lib.support.errors import UserError
    from nanogpt_lib.support.shard_files import open_bin

    if not callable(answer):
        raise Wrong("pass the function itself, without calling it")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for number, tokens in enumerate((np.arange(49_257, 50_257), [0, 65_535, 7], np.array([5]))):
            path = Path(folder) / f"some_train_{number:06d}.bin"
            answer(path, tokens)
            hint(not path.exists(), f"there is no file {path.name}: write it to `path`.")
            content, n = path.read_bytes(), len(tokens)
            hint(
                len(content) == 2 * n,
                "only the tokens are there; the header of 1,024 bytes comes first.",
            )
            hint(
                len(content) == 1024 + 4 * n,
                "four bytes per token: they must be uint16, the header int32.",
            )
            hint(
                len(content) == 512 + 2 * n,
                "the header has 256 numbers of four bytes, not of two.",
            )
            hint(
                len(content) != 1024 + 2 * n,
                f"{len(content):,} bytes for {n:,} tokens; 256 int32 and the tokens as uint16 are "
                f"{1024 + 2 * n:,}.",
            )
            header = np.frombuffer(content[:1024], dtype="<i4")
            hint(header[0] != 20240520, f"number 0 of the header is {header[0]}, not 20240520.")
            hint(header[1] != 1, f"number 1 of the header is the version, 1, not {header[1]}.")
            hint(header[2] != n, f"number 2 of the header counts the tokens: {n}, not {header[2]}.")
            hint(bool(header[3:].any()), "the rest of the header must be 0.")
            try:
                given = np.array(open_bin(path))
            except UserError as error:
                raise Wrong(str(error).split(": ", 1)[-1]) from error
            hint(not np.array_equal(given, np.asarray(tokens)), "the tokens read back differ.")
        for bad in ([70_000], [3, -1], np.array([5, 2**16])):
            path = Path(folder) / "refused.bin"
            try:
                answer(path, bad)
                told = False
            except (ValueError, OverflowError):
                told = True
            except AssertionError as error:
                raise Wrong("refuse with ValueError; an assert is for your own mistakes") from error
            shown = list(map(int, bad))
            shown = shown if isinstance(bad, list) else f"np.array({shown})"
            hint(not told, f"{shown} does not fit uint16 (0 to 65,535), and nobody was told.")
            hint(
                path.exists(),
                f"{shown} was refused, but a file was begun: look at the ids before you write.",
            )


@exercise(
    "With such a mask a window holds several documents that know nothing of each other. GPT-3 and "
    "the lecture do without; long contexts of short documents gain from it."
)
def check_08_5(answer) -> None:
    """The mask of several windows against a loop."""
    import numpy as np

    eot = 50256
    windows = [[5, 6, eot, 7, 8, eot, 9], [eot, 1, 2, eot, eot, 3], [4, 4, 4, 4], [1, eot]]
    for window in windows:
        tokens, T = np.array(window), len(window)
        given = call(answer, tokens)
        try:
            given = np.asarray(given).astype(bool)
        except (TypeError, ValueError) as error:
            raise Wrong(f"return an array of booleans, not {type(given).__name__}") from error
        hint(
            given.shape != (T, T),
            f"one row and one column per token: {(T, T)} for {window}, not {given.shape}.",
        )
        document = np.cumsum(tokens == eot)
        want = (document[:, None] == document) & np.tri(T, dtype=bool)
        ended = np.cumsum(tokens == eot) - (tokens == eot)  # as if eot ended a document
        late = (ended[:, None] == ended) & np.tri(T, dtype=bool)
        hint(
            np.array_equal(given, want.T) and not np.array_equal(want, want.T),
            "rows and columns are swapped: row t is the token that looks.",
        )
        hint(
            np.array_equal(given, document[:, None] == document)
            and not np.array_equal(given, want),
            "a token must not see a later one.",
        )
        hint(
            np.array_equal(given, np.tri(T, dtype=bool)) and not np.array_equal(given, want),
            "that is causal, but the documents still see each other.",
        )
        hint(
            np.array_equal(given, late) and not np.array_equal(late, want),
            "the eot belongs to the document that it begins, not to the one before.",
        )
        hint(
            np.array_equal(given, want & ~np.eye(T, dtype=bool)),
            "a token may look at itself: s ≤ t.",
        )
        if not np.array_equal(given, want):
            t, s = (int(i) for i in np.argwhere(given != want)[0])
            may = "may" if want[t, s] else "must not"
            raise Wrong(f"in {window}, token {t} {may} look at token {s}.")
