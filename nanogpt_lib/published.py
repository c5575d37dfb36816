"""What others' runs reached: the normal loss of GPT-2 (124M) by tokens seen, and GPT-2's lines."""

import math
from pathlib import Path

from nanogpt_lib.logbook import REFERENCES, series

# Tokens of FineWeb (not Edu) seen → validation loss of GPT-2 124M: llm.c's run, 524,288 tokens per
# step, 700 steps of warm-up to 6e-4; modded-nanogpt, records/2024-10-13_llmc/main.log.
NORMAL_LOSS = {
    131_072_000: 6.1710,
    262_144_000: 5.3743,
    393_216_000: 4.7097,
    524_288_000: 4.3170,
    1_048_576_000: 3.8585,
    2_621_440_000: 3.5535,
    5_242_880_000: 3.3924,
    10_255_073_280: 3.2722,
}
# The same log earlier, its training loss averaged over five steps. It depends on the warm-up.
EARLY_LOSS = {
    13_107_200: 9.4538,  # step 25
    26_214_400: 8.5723,
    39_321_600: 7.7023,
    52_428_800: 7.1330,
    78_643_200: 6.6043,
    104_857_600: 6.3358,
}
# Tokens seen → how far above that loss is still normal. This is our judgement: seeds and texts
# differ by less than 0.1, and two published runs on FineWeb-Edu ended 0.01 below and 0.12 above.
TOLERANCE = {1: 1.0, 52_428_800: 1.0, 131_072_000: 0.6, 262_144_000: 0.5, 524_288_000: 0.3}
TOLERANCE |= {1_048_576_000: 0.2, 1e15: 0.2}


def interpolated(table: dict[float, float], tokens: float) -> float | None:
    """A table's value at `tokens`, linear in the logarithm of the tokens; None out of range."""
    points = list(table.items())
    for (t0, l0), (t1, l1) in zip(points, points[1:], strict=False):
        if t0 <= tokens <= t1:
            part = math.log(tokens / t0) / math.log(t1 / t0)
            return l0 + part * (l1 - l0)
    return None


def normal_loss(tokens: float) -> float | None:
    """llm.c's loss after `tokens` tokens, interpolated on a log scale; None out of range."""
    return interpolated(NORMAL_LOSS, tokens)


def band(tokens: float) -> tuple[float, float] | None:
    """llm.c's loss after `tokens` tokens and the highest normal one, from step 25 on."""
    loss = interpolated(EARLY_LOSS | NORMAL_LOSS, tokens)
    return loss and (loss, loss + interpolated(TOLERANCE, tokens))


def parameters_of(settings: dict) -> float:
    """About how many parameters the settings' GPT has with GPT-2's tokens; 0 if they do not say."""
    try:
        return settings["n_embd"] * (12 * settings["n_layer"] * settings["n_embd"] + 50257)
    except (KeyError, TypeError):
        return 0


def why_not_comparable(settings: dict, vocab_size: int | None) -> str:
    """Why a run cannot be compared with llm.c's; empty if it can.

    It can if GPT-2's tokens of FineWeb (Edu or not) train a model of 100M to 160M parameters from
    scratch, in steps of half to twice as many tokens and after at most twice as long a warm-up.
    """
    tokens = settings.get("total_batch_size")
    if not Path(str(settings.get("data", ""))).name.startswith("fineweb"):
        return "its data is not FineWeb"
    if vocab_size not in (50257, None):
        return "its tokens are not GPT-2's"
    if settings.get("init_from", "scratch") != "scratch":
        return "it starts from trained weights"
    if not 100e6 <= (parameters_of(settings) or 124e6) <= 160e6:
        return "its model is not near 124M parameters"
    if type(tokens) is not int or not 2**18 <= tokens <= 2**20:
        return "its steps are not near 524,288 tokens"
    if (settings.get("warmup_steps") or 0) * tokens > 1400 * 2**19:
        return "its warm-up is longer"
    return ""


def verdict(records: list[dict], size: str = "124M") -> list[str]:
    """How a FineWeb-Edu run compares with GPT-2 and GPT-3 of a size, one line per comparison."""
    said = []
    for name, models in REFERENCES.items():
        sign = -1 if name == "val_loss" else 1
        steps, values = series(records, name)
        for model, table in models.items():
            if not values or size not in table:
                continue
            better = [sign * (value - table[size]) > 0 for value in values]
            how = f"passed at step {steps[better.index(True)]}" if any(better) else "not reached"
            if any(better) and not better[-1]:
                how += ", lost again"
            said.append(f"{name} {values[-1]:.4f}, {model} {size} {table[size]:.4f}: {how}")
    return said
