"""Checks of chapter 11's exercises: adapters, the last answer, a merge undone, best fit."""

import torch

from nanogpt_course.checks import Wrong, as_number, call, exercise, hint
from nanogpt_lib.conversations import IGNORED, Roles, answer_targets

LAYERS = ((768, 2304), (768, 768), (768, 3072), (3072, 768))


@exercise(
    "1,179,648 numbers instead of 85 million in the blocks' matrices: as float32 4.7 MB, which is "
    "why people share adapters and not models."
)
def check_11_1(answer) -> None:
    """Rank 8: (in + out) · 8 for each of four matrices, twelve times."""
    n = as_number(answer)
    one = sum(8 * (a + b) for a, b in LAYERS)
    hint(n == one, "that is one block; there are twelve.")
    hint(n == 12 * sum(a + b for a, b in LAYERS), "that is rank 1; the rank is 8.")
    hint(n == 12 * sum(a * b for a, b in LAYERS), "those are the matrices themselves, not A and B.")
    hint(
        n in (12 * 8 * sum(a for a, _ in LAYERS), 12 * 8 * sum(b for _, b in LAYERS)),
        "A has r rows and B has r columns: both count.",
    )
    hint(n == 12 * 8 * (768 + 2304), "that is c_attn alone; three more matrices have an adapter.")
    hint(
        n != 12 * one, "A has r · in numbers, B has out · r; add up four matrices, times 12 blocks."
    )


ROLES = Roles(start=90, user=91, assistant=92, end=93)


def example(*turns: tuple[int, int], pad: int = 0) -> list[int]:
    """A conversation with questions and answers of these lengths, and end tokens as padding."""
    ids, letter = [ROLES.start], 0
    for asked, answered in turns:
        ids += [ROLES.user, *range(letter, letter + asked), ROLES.assistant]
        letter += asked
        ids += [*range(letter, letter + answered), ROLES.end]
        letter += answered
    return ids + [ROLES.end] * pad


def last_only(windows: torch.Tensor) -> torch.Tensor:
    """The right targets, by a loop."""
    targets = answer_targets(windows, ROLES)
    for row, tokens in zip(targets, windows[:, :-1].tolist(), strict=True):
        begins = max((t for t, i in enumerate(tokens) if i == ROLES.assistant), default=len(tokens))
        row[:begins] = IGNORED
    return targets


@exercise(
    "So are models tuned on long talks of which only the last answer was written by an expert, "
    "and models that learn from a reward for their last answer."
)
def check_11_2(answer) -> None:
    """Rows with one, two and three turns, padded; the windows must stay as they are."""
    rows = [example((2, 3), (1, 2), (3, 1)), example((4, 2), (1, 3), pad=2), example((6, 4), pad=4)]
    width = min(map(len, rows))
    windows = torch.tensor([row[:width] if len(row) >= width else row for row in rows])
    given = windows.clone()
    got = call(answer, windows, ROLES)
    if not torch.is_tensor(got):
        raise Wrong(f"return a tensor, not {type(got).__name__}")
    hint(not torch.equal(windows, given), "it changed the windows; leave them as they are.")
    shape = (len(rows), width - 1)
    hint(
        tuple(got.shape) != shape,
        f"the shape must be {shape}: one target for each input, the last token is no input.",
    )
    want, got = last_only(windows), got.long()
    hint(torch.equal(got, answer_targets(windows, ROLES)), "that counts every answer of a row.")
    hint(torch.equal(got, windows[:, 1:]), "that counts every token.")
    ends = torch.tensor([row.index(ROLES.end) for row in windows.tolist()])[:, None]
    early = torch.arange(width - 1) < ends
    first = answer_targets(windows, ROLES).masked_fill(~early, IGNORED)
    hint(torch.equal(got, first), "that is the first answer of each row.")
    ends = (want == ROLES.end) & (got == IGNORED)
    others = torch.equal(got.masked_fill(ends, ROLES.end), want)
    hint(bool(ends.any()) and others, "the end token belongs to the answer: else it never stops.")
    kept = (got != IGNORED) & (got != windows[:, 1:])
    hint(bool(kept.any()), "a target that counts is the next token: y = windows[:, 1:].")
    hint(
        not torch.equal(got, want),
        "find each row's last assistant token; count what answer_targets counts from there on.",
    )


@exercise(
    "In float32 the sum and its undoing differ by rounding; whoever serves many adapters "
    "therefore keeps the original weight, or adds x Aᵀ Bᵀ on the way."
)
def check_11_3(answer) -> None:
    """The weight before, and the merged one untouched."""
    g = torch.Generator().manual_seed(0)
    before = torch.randn(6, 4, generator=g)
    A, B, scale = torch.randn(2, 4, generator=g), torch.randn(6, 2, generator=g), 1.5
    merged = before + B @ A * scale
    given = merged.clone()
    got = call(answer, merged, A.clone(), B.clone(), scale)
    if not torch.is_tensor(got):
        raise Wrong(f"return a tensor, not {type(got).__name__}")
    hint(not torch.equal(merged, given), "it changed the weight in place; return a new one.")
    hint(got.shape != before.shape, f"the shape must be (6, 4); yours is {tuple(got.shape)}.")
    hint(torch.allclose(got, given), "that is the merged weight.")
    hint(torch.allclose(got, merged - B @ A), "the merge added B A times scale.")
    hint(torch.allclose(got, merged + B @ A * scale), "that merges a second time; subtract.")
    hint(not torch.allclose(got, before, atol=1e-5), "subtract what the merge added: B A · scale.")


@exercise(
    "In the worked solution it leaves 1 % of padding, packing in order 22 %. Its price: the same "
    "conversations share a row in every epoch, unless ties are shuffled."
)
def check_11_4(answer) -> None:
    """The rows of best fit decreasing, up to the order of rows and of equal lengths."""
    lengths, room = [5, 9, 3, 7, 2, 4, 8, 6, 1, 5], 10
    given = list(lengths)
    got = call(answer, given, room)
    hint(given != lengths, "it changed the lengths that it was given; leave them as they are.")
    try:
        rows = [[int(n) for n in row] for row in got]
    except TypeError as error:
        raise Wrong("return a list of rows, each a list of numbers") from error
    numbers = sorted(n for row in rows for n in row)
    hint(
        numbers == sorted(lengths),
        "those are the lengths; a row holds the numbers of its conversations.",
    )
    hint(len(numbers) > len(set(numbers)), "a conversation is in two rows.")
    hint(numbers != list(range(len(lengths))), "every conversation must be in a row.")
    sums = [sum(lengths[n] for n in row) for row in rows]
    hint(max(sums) > room, f"a row holds {max(sums)} tokens; there is room for {room}.")
    hint(len(rows) > 5, f"{len(rows)} rows; longest first needs 5.")
    for lengths, want in (
        ([6, 5, 4, 3, 2], [[5, 3, 2], [6, 4]]),
        ([7, 5, 3, 5], [[5, 5], [7, 3]]),
        ([5, 6, 4], [[5], [6, 4]]),
        ([4, 8, 1, 5], [[5, 4, 1], [8]]),  # the first row that fits would be [8, 1]
    ):
        rows = [sorted((lengths[n] for n in row), reverse=True) for row in answer(lengths, room)]
        best = f"with lengths {lengths} and room for {room} the rows are {want}; yours: {rows}."
        hint(sorted(rows) != want, best + " Which row would be left with the least room?")
    one = answer([12, 3], 10)
    hint(
        sorted(map(sorted, one)) != [[0], [1]],
        "one longer than the room gets a row of its own, as in pack.",
    )
