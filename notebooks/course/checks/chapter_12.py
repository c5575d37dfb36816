"""Checks of chapter 12's exercises: an exponent, a model that is used, enough text, repeats."""

import math

import numpy as np

from nanogpt_course.checks import as_number, call, exercise, hint
from nanogpt_lib.scaling import LossLaw

LAWS = (
    LossLaw(E=1.1, A=40.0, alpha=0.4, B=120.0, beta=0.42),
    LossLaw(E=0.8, A=15.0, alpha=0.3, B=60.0, beta=0.36),
)


def near(a: float, b: float, part: float = 0.01) -> bool:
    """Whether a is b, to a part of it."""
    return math.isclose(a, b, rel_tol=part)


@exercise(
    "0.45: a little less than half for the size, a little more for the text. Their other two "
    "methods gave 0.50 and 0.49, and a later fit of their own points (Besiroglu et al. 2024) 0.51: "
    "so much for the second digit."
)
def check_12_1(answer) -> None:
    """β over (α + β)."""
    a = as_number(answer)
    hint(near(a, 0.34 / 0.62), "that is the text's exponent; the other letter stands on top.")
    hint(near(a, 0.5, 1e-6), "only if both exponents are equal.")
    hint(near(a, 0.34 / 0.28) or near(a, 0.28 / 0.34), "the sum of both stands below.")
    hint(near(a, 45, 0.02), "as a number, not in per cent.")
    hint(
        not near(a, 0.28 / 0.62, 0.012),
        "at the best size both terms shrink at the same pace; `best_size` has the formula.",
    )


def total_cost(law: LossLaw, loss: float, S: float, N):
    """6·N·D + 2·N·S where D reaches the loss; inf where no D does."""
    left = loss - law.E - law.A / N**law.alpha
    with np.errstate(all="ignore"):
        D = np.where(left > 0, (law.B / np.maximum(left, 1e-300)) ** (1 / law.beta), np.inf)
    return 6 * N * D + 2 * N * S


def cheapest(law: LossLaw, loss: float, S: float) -> float:
    """The right answer of exercise 2, on a fine grid."""
    sizes = np.geomspace(1e2, 1e12, 400_001)
    return float(sizes[np.argmin(total_cost(law, loss, S, sizes))])


@exercise(
    "The more a model is used, the smaller it should be, and the longer it should learn: that is "
    "why models that millions talk to read a hundred times what Chinchilla's rule asks for."
)
def check_12_2(answer) -> None:
    """Several laws, losses and uses, against a fine grid."""
    for law, loss in zip(LAWS, (1.6, 1.5), strict=True):
        for S in (0.0, 1e10, 1e12):
            N = as_number(call(answer, law, loss, S))
            want = cheapest(law, loss, S)
            hint(
                S > 0 and near(N, cheapest(law, loss, 0.0)) and not near(N, want, 0.03),
                "the use makes no difference in your answer; add 2·N·S to the cost.",
            )
            hint(
                S > 0 and near(N, cheapest(law, loss, 3 * S), 0.004) and not near(N, want, 0.02),
                "2 operations per weight and token in use, not 6: nothing goes backward.",
            )
            hint(
                near(N, float(total_cost(law, loss, S, want)), 0.05),
                "that is the cost; asked is the N that has it.",
            )
            left = law.E + law.A / max(N, 1e-9) ** law.alpha
            hint(left >= loss, f"a model of {N:,.0f} weights never reaches a loss of {loss}.")
            D = (law.B / (loss - left)) ** (1 / law.beta)
            hint(
                not near(N, want, 0.02)
                and total_cost(law, loss, S, N) < 1.02 * total_cost(law, loss, S, want),
                f"close: {want:,.0f} is cheapest, yours is {N:,.0f}. Search on a finer grid.",
            )
            hint(
                not near(N, want, 0.02),
                f"for a loss of {loss} and S = {S:.0e}, N = {N:,.0f} with D = {D:.2g} costs "
                f"{total_cost(law, loss, S, N) / total_cost(law, loss, S, want):.2f} times the "
                "least. For each N, which D reaches the loss? Then take the cheapest.",
            )


def budget_for(law: LossLaw, D: float) -> float:
    """The right answer of exercise 3: D on the best path is a power of C."""
    total = law.alpha + law.beta
    ratio = law.alpha * law.A / (law.beta * law.B)
    return 6 * (D * ratio ** (1 / total)) ** (total / law.alpha)


@exercise(
    "Beyond that budget the text is read again, or the model gets larger than is best: exercise 4 "
    "says what a second reading is worth."
)
def check_12_3(answer) -> None:
    """The best path's D at the C given must be D."""
    for law in LAWS:
        for D in (1e6, 3e8):
            C = as_number(call(answer, law, D))
            want = budget_for(law, D)
            hint(C <= 0, "a number of operations is above 0.")
            hint(near(C, law.best_size(want)), "that is the best size there; asked is C.")
            hint(near(C, want / 6), "C = 6·N·D: the 6 is missing.")
            hint(near(C, 6 * D * D / 20), "20 tokens per weight is Chinchilla's law, not this one.")
            hint(near(C, 6 * law.best_size(D) * D), "best_size takes operations, not tokens.")
            read = C / (6 * law.best_size(C))
            hint(
                not near(read, D),
                f"with C = {C:.3g} the best size reads {read:.3g} tokens, not {D:.3g}.",
            )


def with_repeats(law: LossLaw, N: float, D: float, U: float, R_star: float = 15.0) -> float:
    """The right answer of exercise 4."""
    repeats = max(0.0, D / U - 1)
    return law.loss(N, min(D, U) + U * R_star * (1 - math.exp(-repeats / R_star)))


@exercise(
    "Four times through the same text is nearly as good as four times the text, forty times is "
    "hardly better than twenty. Chapter 11's sonnets had nine, and one saw it."
)
def check_12_4(answer) -> None:
    """Less than one epoch, one, four, forty; another constant."""
    law = LAWS[0]
    for N, D, U, R_star in (
        (1e6, 5e6, 1e7, 15.0),
        (1e6, 1e7, 1e7, 15.0),
        (1e6, 4e7, 1e7, 15.0),
        (3e5, 4e8, 1e7, 15.0),
        (3e5, 4e7, 1e7, 5.0),
        (3e5, 2.5e7, 1e7, 15.0),
    ):
        got, want = (
            as_number(call(answer, law, N, D, U, R_star)),
            with_repeats(law, N, D, U, R_star),
        )

        def like(tokens: float, got=got, N=N) -> bool:
            return near(got, law.loss(N, tokens), 1e-6)

        many = D / U
        hint(many > 1 and like(D), "that takes every repetition for fresh text.")
        hint(many > 1 and like(U), "that takes every repetition for nothing.")
        hint(many < 1 and like(U), "D is less than U here: some of the text is not read at all.")
        hint(
            like(U + U * R_star * (1 - math.exp(-many / R_star))),
            "R counts the readings beyond the first: D/U - 1.",
        )
        hint(
            many < 1 and like(U + U * R_star * (1 - math.exp(-(many - 1) / R_star))),
            "R must not be negative: below one reading, D′ is D.",
        )
        hint(
            R_star != 15 and like(U + U * 15.0 * (1 - math.exp(-(many - 1) / 15.0))),
            "use the R_star that is given.",
        )
        hint(
            many > 1
            and many % 1 > 0
            and like(U + U * R_star * (1 - math.exp(-(D // U - 1) / R_star))),
            "a reading may be a part of one: D/U - 1, not rounded.",
        )
        hint(near(got, 1e-9 + D, 1e-6), "return the loss, not the tokens.")
        hint(
            not near(got, want, 1e-6),
            f"{many:g} times through U: {got:.4f}, not {want:.4f}. Replace D by D′ in the law.",
        )
