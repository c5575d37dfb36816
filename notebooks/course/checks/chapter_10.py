"""Checks of chapter 10's exercises: steps in 40B tokens, what dollars buy, a line, joined logs."""

from nanogpt_course.checks import Wrong, as_number, call, exercise, hint

STEP = 524_288


@exercise(
    "A step of 2 ** 19 tokens divides by every number of cards and rows that is a power of two. "
    "Forty billion tokens are the lecture's longer run, about four epochs of its 19,073 steps."
)
def check_10_1(answer) -> None:
    """Whole steps of 2¹⁹ tokens in 40 billion."""
    n, tokens = as_number(answer), 40_000_000_000
    hint(n == tokens // STEP + 1, "the last of these would not be whole.")
    hint(n == tokens / STEP, "a whole number, please: the last step lacks some tokens.")
    hint(n == 80_000, "half a million is a nickname; a step has 2 ** 19 tokens.")
    hint(n == 10_000_000_000 // STEP, "those are the steps in 10 billion.")
    hint(n == 4 * 19_073, "four epochs of 19,073 steps drop the rest of each epoch. Divide once.")
    hint(n != tokens // STEP, "tokens by tokens per step, rounded down.")


@exercise(
    "The number of cards does not occur: eight cost eight times as much per hour and need an "
    "eighth of the hours. It decides when you are done, not what you pay, as long as communication "
    "is hidden behind the backward pass (chapter 07)."
)
def check_10_2(answer) -> None:
    """Dollars → hours → seconds → FLOPs → tokens, for several budgets and cards."""
    cases = [
        (100.0, 855e6, 989e12, 3.0, 0.4),
        (10.0, 855e6, 312e12, 1.5, 0.5),
        (60.0, 10e9, 65e12, 0.35, 0.25),
    ]
    ratios = []
    for case in cases:
        budget, flops, peak, price, mfu = case
        right = budget / price * 3600 * peak * mfu / flops
        ratios.append((as_number(call(answer, *case)) / right, mfu, price, budget))

    def off(by) -> bool:
        return all(abs(r / by(m, p, b) - 1) < 1e-6 for r, m, p, b in ratios)

    hint(off(lambda m, p, b: 1 / 3600), "the price is per hour, the peak per second.")
    hint(off(lambda m, p, b: 1 / 60), "an hour has 3,600 seconds.")
    hint(off(lambda m, p, b: 1 / m), "no card reaches its peak; MFU is the share that it does.")
    hint(off(lambda m, p, b: m**-2), "a smaller MFU buys fewer tokens, not more.")
    hint(off(lambda m, p, b: p**2), "a higher price buys fewer hours.")
    hint(off(lambda m, p, b: 1 / b), "that is what one dollar buys.")
    hint(off(lambda m, p, b: 8), "eight cards also cost eight times as much per hour.")
    hint(not off(lambda m, p, b: 1), "dollars → hours → seconds → FLOPs → tokens, for any budget.")


def log_of(values: list[float], name: str = "val_loss") -> list[dict]:
    """A log with an evaluation every ten steps, and training records between."""
    log = []
    for i, value in enumerate(values):
        log += [{"step": 10 * i, name: value}, {"step": 10 * i + 5, "train_loss": 9.0}]
    return log


@exercise(
    "From the end it is one walk: go back while the values are below. The doctor's “lost again” "
    "says the same of a line that a run has crossed only for a moment."
)
def check_10_3(answer) -> None:
    """The first step from which all later evaluations stay below."""
    log = log_of([5.0, 4.0, 2.9, 3.1, 2.8, 2.7])
    try:
        got = call(answer, log, "val_loss", 3.0)
    except KeyError as error:
        raise Wrong(
            f"most records have no {error}: pass over those that lack the column"
        ) from error
    hint(got == 20, "step 20 is below, but step 30 is above again.")
    hint(got == 50, "all from step 40 on are below; you skipped one.")
    hint(got == 30, "at step 30 the value is above the level; the next one is the first below.")
    hint(got in (4, 5, 2, 8), "return the record's step, not its place in the list.")
    hint(got != 40, f"expected step 40 of a small log, got {got!r}.")
    two = log_of([5.0, 2.9, 2.8, 3.1, 2.7])
    hint(
        answer(two, "val_loss", 3.0) != 40,
        "looking one evaluation ahead is not enough: after two below, a third may be above.",
    )
    lost = log_of([5.0, 2.9, 2.8, 3.2])
    hint(
        answer(lost, "val_loss", 3.0) is not None,
        "a run that ends above the level has not arrived, however often it was below: None.",
    )
    never = answer(log, "val_loss", 2.0) is not None or answer([], "val_loss", 3.0) is not None
    hint(never, "a run that never gets there, or an empty log, has no such step: None.")
    hint(answer(log_of([2.0, 2.0]), "val_loss", 3.0) != 0, "a run may be below from step 0 on.")
    hint(
        answer(log_of([2.0, 3.0, 2.0]), "val_loss", 3.0) != 20,
        "a value equal to the level is not below it.",
    )
    hint(
        answer(log_of([5.0, 2.0], "hellaswag"), "hellaswag", 3.0) != 10,
        "use the column that `name` names.",
    )


def run_of(first: int, last: int, loss: float) -> list[dict]:
    """A run's records: an update for each step, and an evaluation after every third."""
    log = []
    for step in range(first, last + 1):
        log.append({"step": step, "train_loss": loss})
        if step % 3 == 0:
            log.append({"step": step, "val_loss": loss})
    return log


def joined(logs: list[list[dict]]) -> list[dict]:
    """What check 4 expects."""
    out: list[dict] = []
    for log in logs:
        if log:
            out = [r for r in out if r["step"] < log[0]["step"]] + log
    return out


@exercise(
    "RunLog does the same in one file: a resumed run drops what came after its checkpoint, because "
    "those weights no longer exist."
)
def check_10_4(answer) -> None:
    """Overlaps, evaluations, a later run that stopped early, an empty log, untouched arguments."""
    logs = [run_of(1, 7, 1.0), run_of(6, 9, 2.0), run_of(9, 11, 3.0)]
    before = [list(log) for log in logs]
    got = as_records(call(answer, logs))
    hint(logs != before, "leave the lists that you were given as they are.")
    hint(got == [r for log in logs for r in log], "that keeps everything of all of them.")
    training = [r for r in got if "train_loss" in r]
    steps = [r["step"] for r in training]
    hint(steps != sorted(steps), "in order of steps, please.")
    hint(steps != [*range(1, 12)], f"each of the steps 1 to 11 once; training steps are {steps}.")
    losses = [r["train_loss"] for r in training]
    right = [1.0] * 5 + [2.0] * 3 + [3.0] * 3
    hint(losses != right, "from its first record on, the later run replaces the earlier.")
    evaluations = [r for r in got if "val_loss" in r]
    hint(not evaluations, "keep the evaluations, too: they are records of their own.")
    expected = joined(logs)
    hint(
        len(got) < len(expected),
        "a step has two records where it was trained and evaluated; keep both.",
    )
    hint(
        len(evaluations) != sum("val_loss" in r for r in expected),
        "an evaluation of weights that no longer exist goes, too.",
    )
    hint(got != expected, "the right records, but not in the order of the logs.")
    early = [run_of(1, 9, 1.0), run_of(4, 6, 2.0)]
    hint(
        as_records(answer(early)) != joined(early),
        "a later run that stopped early still replaces all that came after its start.",
    )
    try:
        survivor = as_records(answer([[], run_of(1, 3, 1.0), []]))
    except IndexError as error:
        raise Wrong("right, but a log may be empty: that run died before its first step") from error
    hint(survivor != run_of(1, 3, 1.0), "a log may be empty.")
    for logs in (
        [run_of(1, 9, 1.0), [], run_of(4, 6, 3.0)],
        [run_of(1, 9, 1.0), run_of(6, 8, 2.0), run_of(4, 6, 3.0)],
    ):
        hint(
            as_records(answer(logs)) != joined(logs),
            "a later run cuts all runs before it, not only its neighbour: one between may be "
            "empty, or begin later.",
        )


def as_records(answer) -> list[dict]:
    """An answer that must be a list of records."""
    try:
        records = list(answer)
    except TypeError as error:
        raise Wrong(f"return a list of records, not {type(answer).__name__}") from error
    if not all(isinstance(record, dict) and "step" in record for record in records):
        raise Wrong("return one flat list of records, each a dict with its step")
    return records
