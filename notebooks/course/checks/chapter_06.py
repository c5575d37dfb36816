"""Checks of chapter 06's exercises: half-way, a stable schedule, no correction, uneven parts."""

import math

from nanogpt_course.checks import Wrong, as_number, call, exercise, hint


@exercise(
    "The cosine is point-symmetric about its middle, so half of the decay's updates run above the "
    "mean rate and half below: it costs exactly as much walking as a straight line would."
)
def check_06_1(answer) -> None:
    """Half-way down the cosine is half-way between the end of the warm-up and the last update."""
    step = as_number(answer)
    right = (715 + 19_073) / 2
    hint(step == right + 1, "counting from 1. The first update is number 0 here.")
    hint(step == right - 1, "one too early: the cosine begins with update 715, at the peak.")
    hint(10_540 < step < 10_550, "there it is half of the peak; the question is about the middle "
         "between peak and floor.")  # fmt: skip
    hint(step in (19_073 // 2, 19_073 // 2 + 1, 19_073 / 2), "that is the middle of the run; the "
         "cosine begins only after the warm-up.")  # fmt: skip
    hint(step == (19_073 - 715) / 2, "half the length of the decay; now count from update 0.")
    hint(
        300 < step < 450,
        "the rate is there on its way up, too; the question is about the way down.",
    )
    hint(step != right, "where is a cosine zero? At half of its way.")


PLANS = [
    dict(max_lr=1.0, warmup_steps=10, decay_steps=20, max_steps=100),
    dict(max_lr=6e-4, warmup_steps=8, decay_steps=40, max_steps=200),
    dict(max_lr=3.0, warmup_steps=4, decay_steps=5, max_steps=9),
]


def stable(step: int, max_lr: float, warmup_steps: int, decay_steps: int, max_steps: int) -> float:
    """The right answer of exercise 2."""
    falling = max(0, max_steps - step) / decay_steps
    return max_lr * min(1.0, (step + 1) / warmup_steps, falling)


@exercise(
    "The constant part needs no end: a run can go on from any checkpoint of it, and only the short "
    "decay is repeated. The presets quickstart and modern-124m use this schedule (--schedule wsd)."
)
def check_06_2(answer) -> None:
    """Three pieces, continuous where they meet, for several plans."""

    def given(step: int, plan: dict) -> float:
        return as_number(call(lambda: answer(step, **plan)))

    if not callable(answer):
        raise Wrong("pass the function itself, without calling it")
    plan = PLANS[0]
    cases = [
        (0, "the first update must not have a rate of 0; as in the chapter, it gets a tenth here"),
        (9, "the last update of the warm-up reaches the peak"),
        (50, "between the ramps the rate is constant"),
        (80, "the decay begins at max_steps - decay_steps, from the peak"),
        (90, "half-way through the decay, half the peak"),
        (99, "the last update still learns a little"),
        (100, "from max_steps on: 0"),
        (150, "beyond max_steps the rate stays 0, never negative"),
    ]
    hint(
        math.isclose(given(99, plan), 0.0, abs_tol=1e-9) and given(90, plan) > 0,
        "the last update has a rate of 0 and teaches nothing: update max_steps would have 0, "
        "and it is not run.",
    )
    for step, reason in cases:
        value = given(step, plan)
        wrong = not math.isclose(value, stable(step, **plan), abs_tol=1e-6)
        hint(wrong, f"update {step} of 100 gives {value:g}; {reason}.")
    plan = PLANS[1]
    for step in (0, 3, 7, 100, 160, 180, 199):
        value, right = given(step, plan), stable(step, **plan)
        hint(math.isclose(value, right / 6e-4, rel_tol=1e-5), "the peak is max_lr, not always 1.")
        hint(
            not math.isclose(value, right, rel_tol=1e-5),
            f"with {plan}, update {step} gives {value:g}, expected {right:g}.",
        )
    plan = PLANS[2]  # nothing is constant here: the ramps meet
    for step in range(12):
        value, right = given(step, plan), stable(step, **plan)
        wrong = not math.isclose(value, right, abs_tol=1e-6)
        hint(wrong, f"with {plan}, where the two ramps meet, update {step} gives {value:g}.")


@exercise(
    "With β₂ = 0.999, update 10 is 6.5 times too long: after ten gradients m is two thirds "
    "full, and v only one per cent. Without the correction, a warm-up would be a matter of life "
    "and death."
)
def check_06_3(answer) -> None:
    """m = 1 - β₁^t and v = 1 - β₂^t when all gradients are 1."""
    for t, beta2 in [(1, 0.95), (10, 0.95), (2, 0.95), (10, 0.999), (5000, 0.999)]:
        m, v = 1 - 0.9**t, 1 - beta2**t
        try:
            value = as_number(call(answer, t, beta2))
        except ZeroDivisionError:
            value = 0.0
        hint(t == 1 and value == 0, "one update behind: at t = 1 one gradient is already in.")

        def near(other: float, value: float = value) -> bool:
            return math.isclose(value, other, rel_tol=1e-4)

        hint(t < 5000 and near(1.0), "that is the size *with* the correction.")
        hint(t < 5000 and near(m / v), "v is a mean of squares: take its root.")
        hint(t < 5000 and near(math.sqrt(v) / m), "upside down: m stands above the root of v.")
        hint(t < 5000 and near(m), "and where is v? The mean is divided by its root.")
        first = 0.1 / math.sqrt(1 - beta2)
        hint(t > 1 and t < 5000 and near(first), "that is the first update's size; m and v go on "
             "filling.")  # fmt: skip
        previous = (1 - 0.9 ** (t - 1)) / math.sqrt(1 - beta2 ** (t - 1)) if t > 1 else 0.0
        hint(t > 1 and t < 5000 and near(previous), "one update behind: t = 1 is the first.")
        hint(
            not near(m / math.sqrt(v)),
            f"t = {t}, beta2 = {beta2}: {value:.4f}. What are m and v after t gradients of 1? A "
            "geometric sum.",
        )


def padded(torch, lengths: list[int]):
    """Tokens and targets of rows with so many real targets, the rest ignored."""
    x, y = torch.randint(0, 11, (2, len(lengths), 8))
    for row, length in enumerate(lengths):
        y[row, length:] = -100
    return x, y


@exercise(
    "Libraries had the mean of means for years. It was found in 2024, because nothing crashes and "
    "nothing looks wrong: short micro-batches merely count too much."
)
def check_06_4(answer) -> None:
    """Equal to one pass over everything; also when a micro-batch is all padding."""
    import torch
    from torch.nn import functional as F

    from nanogpt_lib.model import GPT, GPTConfig

    if not callable(answer):
        raise Wrong("pass the function itself, without calling it")
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=8, vocab_size=11, n_layer=1, n_head=2, n_embd=8))

    def flat() -> torch.Tensor:
        empty = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        return torch.cat([g.flatten() for g in empty]).clone()

    cases = [[8, 8, 3, 1, 5, 6], [8, 8, 3, 1, 0, 0], [0, 0, 2, 7, 8, 8], [4, 4, 4, 4, 4, 4]]
    for lengths in cases:
        x, y = padded(torch, lengths)
        batches = [(x[i : i + 2], y[i : i + 2]) for i in (0, 2, 4)]
        losses = [F.cross_entropy(model(a)[0].flatten(0, 1), b.flatten(), reduction="sum")
                  for a, b in batches]  # fmt: skip
        counts = [int((b != -100).sum()) for _, b in batches]
        model.zero_grad()
        (sum(losses) / sum(counts)).backward()
        want = flat()
        model.zero_grad()
        rows, backwards = [], []
        hooks = [
            model.register_forward_pre_hook(
                lambda module, inputs, r=rows: r.append(len(inputs[0]))
            ),
            model.transformer.ln_f.weight.register_hook(lambda g, b=backwards: b.append(1)),
        ]
        answer(model, batches)
        for hook in hooks:
            hook.remove()
        got = flat()
        model.zero_grad()
        (F.cross_entropy(model(x[4:])[0].flatten(0, 1), y[4:].flatten(), reduction="sum")
         / sum(counts)).backward()  # fmt: skip
        last = flat()
        hint(
            max(rows, default=0) > 2,
            "that is one big batch; the micro-batches are there because it does not fit.",
        )
        hint(
            0 < len(backwards) < sum(count > 0 for count in counts),
            "call backward after each forward pass: losses that wait for a common one keep all "
            "activations in memory.",
        )
        hint(
            counts[0] > 0 and counts[2] > 0 and torch.allclose(got, last, atol=1e-6),
            "only the last micro-batch is left: nothing may clear .grad between them.",
        )
        hint(not got.any(), "no gradient arrives in .grad: call backward().")
        hint(
            bool(got.isnan().any()),
            "the gradient is not a number: a micro-batch may have no real token, and a mean over "
            "none divides by 0.",
        )
        scale = ((got * want).sum() / (want * want).sum()).item()
        straight = torch.allclose(got, scale * want, atol=1e-5 * max(1.0, abs(scale)))
        unlike = not math.isclose(scale, 1, rel_tol=1e-4)
        hint(
            straight and unlike and math.isclose(scale, sum(counts) / x.numel(), rel_tol=1e-3),
            "divided by all positions; the ignored ones do not count.",
        )
        hint(
            straight and unlike and math.isclose(scale, sum(counts), rel_tol=1e-3),
            "that is the gradient of the sum; divide by the number of real tokens.",
        )
        hint(
            straight and unlike and math.isclose(scale, 3, rel_tol=1e-3),
            "three times too long: add up, and divide once by all real tokens.",
        )
        hint(
            straight and unlike,
            f"the direction is right, the length is {scale:.3g} times the right one.",
        )
        hint(
            not torch.allclose(got, want, atol=1e-6),
            "weigh each micro-batch by its real tokens, over all of them together.",
        )
