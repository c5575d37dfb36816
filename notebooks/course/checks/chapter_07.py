"""Checks of chapter 07's exercises: a window, the time of a step, unequal shares, sliced norms."""

import math

from nanogpt_course.checks import Wrong, as_number, as_tensors, call, exercise, hint


@exercise(
    "Because the rule names windows and not processes, a run may go on with another number of "
    "GPUs and still read every window once, in the same order."
)
def check_07_1(answer) -> None:
    """(m·W + r)·B + b for m = 3, W = 4, r = 2, B = 8, b = 5."""
    window = as_number(answer)
    right = (3 * 4 + 2) * 8 + 5
    hint(
        window == right + 1,
        "counting from 1? Windows, too, count from 0. Or did you deal the rows out one by one, "
        "like cards? The 8 rows of a rank lie together.",
    )
    hint(
        window == (3 * 8 + 2) * 4 + 5,
        "ranks count from 0; or are rows and processes swapped? One rank reads 8 rows.",
    )
    hint(window == 2 * 8 + 5, "that is micro-step 0; three micro-steps of all ranks come before.")
    hint(window == (2 * 4 + 2) * 8 + 5, "micro-steps count from 0: three whole ones come before.")
    hint(window == 3 * 8 + 5, "that is rank 0 alone in the world; four ranks share a micro-step.")
    hint(window == 3 * 32 + 5, "that is rank 0; two ranks of 8 rows come before.")
    hint(window != right, "all four ranks together read 32 windows in each micro-step.")


CASES = [
    ((1e9, 1, 1e10, 1.0, 0.5), "one process sends nothing"),
    ((1e9, 8, 1e12, 1.0, 0.5), "sending that fits beside the computing is free"),
    ((1e9, 2, 1e10, 0.1, 0.0), "with overlap 0 everything is added"),
    ((1e9, 8, 1e10, 0.1, 0.5), "each rank sends 2 (W - 1)/W times 4 bytes per parameter"),
    ((2e9, 4, 5e10, 0.7, 0.25), "only a part of the computing hides anything"),
    ((1.5e9, 16, 2e10, 0.2, 1.0), "even with overlap 1, what is longer than the computing waits"),
]


MISTAKES = {  # of the seconds of sending, of computing, and the overlap
    "the overlap hides a part of the computing's time, not a part of the sending.": (
        lambda sending, compute, overlap: compute + (1 - overlap) * sending
    ),
    "sending cannot take less than no time: a fast link does not make computing shorter.": (
        lambda sending, compute, overlap: compute + sending - overlap * compute
    ),
    "nothing is hidden yet: subtract what happens during the computing.": (
        lambda sending, compute, overlap: compute + sending
    ),
    "that is the computing alone.": lambda sending, compute, overlap: compute,
    "2 (W - 1)/W counts vectors; each number of a gradient has 4 bytes.": (
        lambda sending, compute, overlap: compute + max(0.0, sending / 4 - overlap * compute)
    ),
    "a ring sends every piece twice, once to sum and once to share.": (
        lambda sending, compute, overlap: compute + max(0.0, sending / 2 - overlap * compute)
    ),
    "the longer of both would be right if all of the computing could hide the sending.": (
        lambda sending, compute, overlap: max(compute, sending)
    ),
}


def step_seconds(P: float, W: int, beta: float, compute: float, overlap: float) -> float:
    """The right answer of exercise 2."""
    sending = 2 * (W - 1) / W * 4 * P / beta
    return compute + max(0.0, sending - overlap * compute)


@exercise(
    "For GPT-2 124M on eight A100 joined by 10 Gbit/s this is 2.3 times as long as on NVLink if "
    "all of backward can overlap, and three times if none can. On a slow network accumulate more: "
    "half as many steps send half as much."
)
def check_07_2(answer) -> None:
    """Computing, and what sending is left over."""
    given = [as_number(call(answer, *case)) for case, _ in CASES]
    for text, wrong in MISTAKES.items():
        values = [wrong(2 * (W - 1) / W * 4 * P / b, c, o) for (P, W, b, c, o), _ in CASES]
        hint(alike(given, values), text)
    for value, (case, reason) in zip(given, CASES, strict=True):
        right = step_seconds(*case)
        hint(
            not math.isclose(value, right, rel_tol=1e-6),
            f"{reason}: {value:g} instead of {right:g} s for {case}.",
        )


@exercise(
    "DDP has no such rows argument: it always takes the mean of means. That is why our loader "
    "gives every rank the same number of rows, and refuses a number of GPUs that cannot share them."
)
def check_07_3(answer) -> None:
    """Weighted by rows, for several splits, without touching the gradients."""
    import torch

    torch.manual_seed(0)
    for rows in ([5, 3], [2, 2, 2], [1, 6, 4], [7, 1]):
        per_row = torch.randn(sum(rows), 5) + 1
        shares = list(per_row.split(rows))
        means = [share.mean(0) for share in shares]
        before = [mean.clone() for mean in means]
        got = call(answer, means, list(rows))
        try:
            got = torch.as_tensor(got, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise Wrong(f"return one tensor, not {type(got).__name__}") from error
        hint(got.shape != (5,), f"return one gradient, of shape (5,) here, not {tuple(got.shape)}.")
        unequal = len(set(rows)) > 1
        touched = any(not torch.equal(a, b) for a, b in zip(means, before, strict=True))
        hint(touched, "your function changes the gradients that it was given; make new tensors.")
        hint(
            unequal and torch.allclose(got, sum(means) / len(means), atol=1e-5),
            "that is the mean of means; a row of the small share then counts more.",
        )
        hint(torch.allclose(got, per_row.sum(0), atol=1e-4), "that is the sum; divide by all rows.")
        hint(
            torch.allclose(got, sum(means), atol=1e-5),
            "these are means: times its rows, each becomes a sum. Sums add up.",
        )
        hint(
            torch.allclose(got, per_row.sum(0) / len(rows), atol=1e-4),
            "divide by the number of rows of all, not by the number of ranks.",
        )
        hint(
            not torch.allclose(got, per_row.mean(0), atol=1e-5),
            f"wrong for shares of {rows} rows: mean times rows is a sum, and sums add up.",
        )


def alike(a: list[float], b: list[float]) -> bool:
    """Whether two lists hold the same numbers, to four digits."""
    return all(math.isclose(x, y, rel_tol=1e-4, abs_tol=1e-6) for x, y in zip(a, b, strict=True))


class Counted:
    """all_reduce for exercise 4: checks what it is given."""

    def __init__(self, slices, further: float = 0.0):
        self.ranks, self.calls = len(slices), []
        self.further = further  # what a rank sends whose slice the learner does not get

    def __call__(self, numbers) -> float:
        try:
            numbers = [as_number(number) for number in numbers]
        except TypeError as error:
            raise Wrong(
                "all_reduce takes a list with one number from each rank: call it once for all, not "
                "once per rank"
            ) from error
        if len(numbers) != self.ranks:
            raise Wrong(f"all_reduce takes one number from each of {self.ranks} ranks")
        self.calls.append(numbers)
        return sum(numbers) + self.further


@exercise(
    "One number per rank is all that travels, whatever the size of the model. `clip_grad_norm_` "
    "does this for DTensors, and the chapter's `clip_gradients` reads the result."
)
def check_07_4(answer) -> None:
    """The norm of the whole, by one sum of squares."""
    import torch

    cases = [
        ([[3.0, 0.0], [0.0, 4.0]], 1.0, 0.0),
        ([[3.0, 0.0], [0.0, 4.0]], 10.0, 0.0),
        ([[1.0, -2.0, 2.0], [4.0, 0.0, 2.0], [-1.0, 1.0, 5.0]], 2.0, 0.0),
        ([[0.5], [0.25], [0.125], [0.0]], 0.1, 0.0),
        ([[3.0, 0.0], [0.0, 4.0]], 1.0, 144.0),  # a third rank, whose slice has the norm 12
    ]
    for values, limit, further in cases:
        slices = [torch.tensor(row) for row in values]
        squares = [(s * s).sum().item() for s in slices]
        norm = (sum(squares) + further) ** 0.5
        want = [s * min(1.0, limit / norm) for s in slices]
        all_reduce = Counted(slices, further)
        given = [s.clone() for s in slices]
        got = as_tensors(call(answer, given, limit, all_reduce), len(slices))
        touched = any(not torch.equal(a, b) for a, b in zip(given, slices, strict=True))
        hint(touched, "the slices that you were given have changed; return new tensors.")
        hint(not all_reduce.calls, "no rank can know the norm of the whole without all_reduce.")
        norms = [math.sqrt(square) for square in squares]
        told = any(alike(numbers, squares) for numbers in all_reduce.calls)
        hint(
            not told and any(alike(numbers, norms) for numbers in all_reduce.calls),
            "norms do not add up (3 and 4 make 5, not 7), their squares do.",
        )
        hint(
            not told,
            "what did each rank send? Its own sum of squares lets all find the norm; anything else "
            "here is of no use, or was looked up in slices of other ranks.",
        )
        alone = [s * min(1.0, limit / max(s.norm().item(), 1e-9)) for s in slices]
        read = [s * min(1.0, limit / sum(squares) ** 0.5) for s in slices]
        hint(
            further > 0 and all(torch.allclose(g, r) for g, r in zip(got, read, strict=True)),
            "use what all_reduce returns: the slices of others are not yours to read, and a rank "
            "takes part whose slice is not in the list.",
        )
        hint(
            norm > limit and all(torch.allclose(g, a) for g, a in zip(got, alone, strict=True)),
            "each slice is scaled by its own norm, which turns the gradient.",
        )
        hint(
            norm <= limit
            and any(not torch.allclose(g, s) for g, s in zip(got, slices, strict=True)),
            "a norm below the limit must leave the gradient as it is.",
        )
        hint(
            any(not torch.allclose(g, w, atol=1e-5) for g, w in zip(got, want, strict=True)),
            "scale every slice by limit / norm of the whole. The sum of squares is norm².",
        )
