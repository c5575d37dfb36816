"""Checks of chapter 04's exercises: a floor, bits per byte, a drifting loader, a mixture."""

import math

from nanogpt_course.checks import as_number, call, exercise, hint


@exercise(
    "So zero is not always the floor of an overfitted batch, and a loss of 0.0108 may be perfect: "
    "a language has doubt in it that no model can remove."
)
def check_04_1(answer) -> None:
    """Two predictions of 128 cost ln 2."""
    loss, floor = as_number(answer), 2 * math.log(2) / 128

    def near(value: float) -> bool:
        return math.isclose(loss, value, rel_tol=2e-2)

    hint(loss == 0, "after the shared first token, can the model know which row it is in?")
    hint(near(math.log(2)), "ln 2 is paid at two of the predictions. The loss is a mean over all.")
    hint(near(2 * math.log(2)), "that is the sum over the batch. The loss is a mean over all.")
    hint(near(floor / 2), "both rows pay.")
    hint(near(2 / 128), "that is in bits: a choice between two costs one bit, or ln 2 nats.")
    hint(near(2 * math.log(2) / 4), "a mean over 128 predictions, not over four rows.")
    hint(near(math.log(2) / 32), "right for two rows of 32; there are four rows.")
    hint(not near(floor), "at how many of the 128 predictions is the model in doubt, and how much?")


@exercise(
    "Chapter 01's model has a loss of about 1.13 nats for characters of one byte each, which is "
    "1.6 bits per byte; GPT-2 needs about 1 on ordinary English."
)
def check_04_2(answer) -> None:
    """Bits per byte, for several tokenizers."""
    value = as_number(call(answer, math.log(256), 1000, 1000))
    hint(math.isclose(value, math.log(256)), "these are nats. How many bits has a nat?")
    hint(
        math.isclose(value, math.log(256) * math.log(2)),
        "the other way: one nat is 1.44 bits, so divide by ln 2.",
    )
    hint(math.isclose(value, 8000), "that is for the whole text; divide by its bytes.")
    hint(
        not math.isclose(value, 8, rel_tol=1e-4),
        "one byte per token at loss ln 256 is a choice among 256: 8 bits per byte.",
    )
    right = 3.2924 / math.log(2) / 4.5
    value = as_number(answer(3.2924, 1000, 4500))
    hint(
        math.isclose(value, right * 4.5, rel_tol=1e-4),
        "with 4.5 bytes per token, each byte pays only its part.",
    )
    hint(
        math.isclose(value, right * 4.5**2, rel_tol=1e-4),
        "a byte costs less than a token: tokens by bytes, not bytes by tokens.",
    )
    hint(not math.isclose(value, right, rel_tol=1e-4), "bits of all tokens, over all bytes.")


def batches(n: int, B: int, T: int, W: int, rank: int, extra: int = 1, offset: bool = True) -> int:
    """How many batches the lecture's loader reads from a file of n tokens."""
    position, count = B * T * rank * offset, 0
    while True:
        count += 1
        position += B * T * W
        if position + B * T * W + extra > n:
            return count


@exercise(
    "Ranks 6 and 7 stop one batch early, begin the next file while the others still read this one, "
    "and are a batch further after every file. Nothing fails; the ranks only drift apart."
)
def check_04_3(answer) -> None:
    """Batches per file of the lecture's loader."""
    ranks = [as_number(call(answer, 100_000_000, 64, 1024, 8, rank)) for rank in range(8)]
    hint(
        len(set(ranks)) == 1,
        f"every rank gets {ranks[0]}, but the position that is tested includes B*T*rank.",
    )
    right = [190] * 6 + [189] * 2
    hint(ranks == [r + 1 for r in right], "one too many: the position advances, then it is tested.")
    hint(ranks == [r - 1 for r in right], "one too few: the first batch is read before any test.")
    hint(
        ranks != right,
        f"you have {ranks}. Follow the position in a while loop; the test asks for "
        "W batches, not one.",
    )
    for case in ((1000, 2, 10, 2, 1), (1001, 2, 10, 1, 0), (1000, 2, 10, 1, 0), (500, 1, 7, 3, 2)):
        got, expected = as_number(answer(*case)), batches(*case)
        hint(
            got != expected and got == batches(*case, extra=0),
            "a batch needs one token more, the last target: mind the + 1.",
        )
        hint(got != expected, f"right for the large file; for {case} it should be {expected}.")


class CountingLoader:
    """Stands for a TokenLoader: its batches are sign, 2·sign, 3·sign, …"""

    def __init__(self, sign: int):
        self.sign, self.count = sign, 0

    def next_batch(self) -> int:
        self.count += 1
        return self.sign * self.count

    def state_dict(self) -> dict:
        return {"count": self.count}

    def load_state_dict(self, state: dict) -> None:
        self.count = state["count"]


def read(mixture, n: int) -> list:
    """The next n batches."""
    return [mixture.next_batch() for _ in range(n)]


def plain(state) -> bool:
    """Whether a state is made of small numbers, texts, lists and dicts."""
    if isinstance(state, dict):
        return all(plain(value) for value in state.values())
    if isinstance(state, (list, tuple)):
        return len(state) < 100 and all(plain(value) for value in state)
    return isinstance(state, (str, type(None))) or (
        isinstance(state, (int, float)) and abs(state) < 1e12
    )


@exercise(
    "With several processes all of them draw the same choice, because the rank is not in it. That "
    "is how a run stays the same on one GPU and on eight."
)
def check_04_4(answer) -> None:
    """A mixture: shares, repetition, seeds that differ, a small state, resuming."""
    hint(not isinstance(answer, type), "pass the class itself, without calling it.")

    def make(seed, share=0.75):
        return answer(CountingLoader(1), CountingLoader(-1), share=share, seed=seed)

    full = read(make(3), 400)
    hint(full[0] is None, "next_batch returns None so far: write your code.")
    order = {sign: [abs(b) for b in full if (b > 0) == (sign > 0)] for sign in (1, -1)}
    kept = all(places == [*range(1, len(places) + 1)] for places in order.values())
    hint(not kept, "each loader must go on where it stopped: take one batch from one of them.")
    for share in (0.75, 0.2):
        drawn = read(make(3, share), 400)
        part = sum(batch > 0 for batch in drawn) / 400
        swapped = abs(1 - part - share) < 0.1 and share == 0.75
        hint(swapped, "the shares are the other way round.")
        hint(
            abs(part - share) > 0.1,
            f"{part:.0%} of the batches come from the first; {share:.0%} wanted.",
        )
    hint(read(make(3), 400) != full, "the same seed must give the same batches.")
    choices = [batch > 0 for batch in full]
    for period in range(1, 21):
        hint(
            choices[period:] == choices[:-period],
            "the choices repeat in a pattern; draw them from a random generator.",
        )
    others = {seed: [batch > 0 for batch in read(make(seed), 400)] for seed in range(8)}
    hint(others[4] == others[3], "another seed must give other choices.")
    hint(
        others[0][1:] == others[1][:-1] or others[1][1:] == others[0][:-1],
        "seed s and batch m + 1 choose like seed s + 1 and batch m: don't add seed and m, give "
        "both to the generator.",
    )
    hint(
        len(set(others[0])) == 1,
        "with seed 0 all choices are the same: don't multiply seed and m, give both to the "
        "generator.",
    )
    first, resumed = make(3), make(3)
    read(first, 123)
    state = first.state_dict()
    hint(state is None, "state_dict returns None so far.")
    hint(
        not plain(state),
        "the state should be a few plain numbers: if the choice depends on seed and m alone, no "
        "generator has to be saved.",
    )
    read(first, 7)  # what was saved must not go on with the loader
    read(resumed, 11)
    resumed.load_state_dict(state)
    goes_on = read(resumed, 50) == full[123:173]
    hint(
        not goes_on,
        "resumed, it reads other batches. Save the count and both loaders' states. (A generator "
        "that runs through all batches has lost its place: make one of seed and count each time.)",
    )
    hint(make(3, 1.0).next_batch() != 1, "with share 1.0 every batch comes from the first loader.")
