"""diagnosis.py: every spoiled log has its symptom, and no healthy one has any."""

import json
import math

import numpy as np
import pytest
from test_logbook import healthy

from conftest import ROOT
from nanogpt_lib.diagnosis import RULES, diagnose
from nanogpt_lib.doctor import symptoms
from nanogpt_lib.published import (
    EARLY_LOSS,
    NORMAL_LOSS,
    TOLERANCE,
    band,
    normal_loss,
    verdict,
    why_not_comparable,
)
from nanogpt_lib.support.run_log import read_log

FINEWEB = {"data": "data/fineweb", "total_batch_size": 524_288}
TABLE = json.loads((ROOT / "tests/fixtures/llmc_124m.json").read_text(encoding="utf-8"))


def published(steps: int = 19_560) -> list[dict]:
    """llm.c's public log of GPT-2 124M, every twentieth update."""
    rows = zip(TABLE["train_loss"], TABLE["grad_norm"], strict=True)
    log = [
        {"step": 20 * i + 1, "train_loss": loss, "grad_norm": norm}
        for i, (loss, norm) in enumerate(rows)
    ]
    log += [{"step": int(s), "val_loss": loss} for s, loss in TABLE["val_loss"].items()]
    return [r for r in sorted(log, key=lambda r: r["step"]) if r["step"] <= steps]


def made_up(loss_at, steps: int = 2000, noise: float = 0.03, **columns) -> list[dict]:
    """A log with losses `loss_at(step)` plus noise."""
    random = np.random.default_rng(7)
    return [
        {"step": s, "train_loss": loss_at(s) + noise * random.normal(), **columns}
        for s in range(1, steps + 1)
    ]


def power_law(step: int) -> float:
    """A loss that falls as that of healthy runs does."""
    return 3.0 + 7.8 * (1 + step / 60) ** -0.75


def change(log: list[dict], when, **values) -> list[dict]:
    """The log with values that are functions of the record in the records where `when(step)`."""
    return [
        r | {name: of(r) for name, of in values.items()}
        if "train_loss" in r and when(r["step"])
        else r
        for r in log
    ]


# ---- healthy logs


def test_the_published_run_is_healthy_at_every_length():
    """As a run would be judged at each of its evaluations."""
    for steps in [1, 21, 41, 101, *range(250, 19_561, 500), 19_560]:
        assert diagnose(published(steps), 50257, FINEWEB) == [], steps


def test_our_recorded_run_and_made_up_healthy_ones_have_no_symptom():
    recorded = read_log(ROOT / "notebooks/recorded/log.jsonl")
    assert diagnose(recorded, 50257) == []
    for steps in (1, 5, 30, 300, 999, 2000):
        assert diagnose(made_up(power_law, steps, grad_norm=0.5), 50257) == [], steps
    noisy = made_up(lambda s: 1.4 + 3.1 * math.exp(-s / 150), 1200, noise=0.08)
    assert diagnose(noisy, 96) == []  # characters, small batches
    assert diagnose(healthy(), 50257) == diagnose(healthy()) == []


# ---- sick logs


def test_a_run_that_stays_where_token_frequencies_end_is_sick():
    """Stuck at 7.6 for 2,000 steps; too early to tell before 500; unknown for a fine-tuned one."""
    stuck = made_up(lambda s: 7.6 + 3.2 * math.exp(-(s - 1) / 40))
    (symptom,) = diagnose(stuck, 50257)
    assert symptom.text.startswith("the loss stays at 7.") and not symptom.past
    assert "from step 1001 on: little more than token frequencies" in symptom.text
    assert diagnose(stuck[:499], 50257) == diagnose(stuck) == []
    every_tenth = stuck[::10]  # as nanoGPT prints
    assert [s.kind for s in diagnose(every_tenth, 50257)] == ["stuck"]
    high = diagnose(stuck, 50257, FINEWEB)  # and far above the published curve
    assert [s.kind for s in high] == ["stuck", "too high"]


def test_a_plateau_at_any_height_is_found_and_a_slow_fall_is_not():
    flat = made_up(lambda s: max(power_law(s), 4.9), 3000)
    assert [s.kind for s in diagnose(flat, 50257)] == ["plateau"]
    slow = made_up(lambda s: 6.0 - 0.3 * math.log(1 + s / 100), 3000)
    slow[0]["train_loss"] = 10.8
    assert [s.kind for s in diagnose(slow, 50257)] == []


@pytest.mark.parametrize(
    "kind, past, text, spoil",
    [
        ("spike", True, "jumps to 4.3", (lambda s: s == 8001, {"train_loss": lambda r: 4.3})),
        (
            "spike",
            False,
            "jumps to",
            (lambda s: s > 19_000, {"train_loss": lambda r: r["train_loss"] + 1}),
        ),
        (
            "rising",
            False,
            "the loss rises: 3.",
            (lambda s: s > 12_000, {"train_loss": lambda r: 3.3 + (r["step"] - 12_000) / 9000}),
        ),
        (
            "not finite",
            False,
            "jumps to nan",
            (lambda s: s == 19_541, {"train_loss": lambda r: None}),
        ),
        (
            "dead gradients",
            False,
            "norm is 1e-09 since step 19001",
            (lambda s: s > 19_000, {"grad_norm": lambda r: 1e-9}),
        ),
        (
            "gradients",
            False,
            "the gradient norm is 30; it was 0.2",
            (lambda s: s > 19_000, {"grad_norm": lambda r: 30.0}),
        ),
        (
            "slower",
            False,
            "tokens per second fell from 1,000 to 400",
            (
                lambda s: True,
                {"tokens_per_sec": lambda r: 1000 if r["step"] < 17_000 else 400},
            ),
        ),
        (
            "slower",
            False,
            "steps per second fell from 4.00 to 2.00",
            (lambda s: True, {"ms": lambda r: 250.0 if r["step"] < 17_000 else 500.0}),
        ),
        (
            "lagging",
            False,
            "rank 5 lags: its part of a step takes 1.40 times",
            (
                lambda s: True,
                {"slowest_rank": lambda r: 5, "slowest_ratio": lambda r: 1.4},
            ),
        ),
        ("first loss", False, "first loss 9.50", (lambda s: s == 1, {"train_loss": lambda r: 9.5})),
    ],
)
def test_each_spoiled_log_has_exactly_its_symptom(kind, past, text, spoil):
    when, values = spoil
    found = diagnose(change(published(), when, **values), 50257, FINEWEB)
    kinds = [s.kind for s in found]
    assert kind in kinds, found
    assert set(kinds) <= {kind, "too high", "rising", "spike"}, found
    symptom = found[kinds.index(kind)]
    assert text in symptom.text and symptom.past == past
    assert symptom.past or symptom.advice


def test_a_jump_that_came_back_is_past_but_many_are_an_unstable_run():
    jump = change(made_up(power_law), lambda s: s == 900, train_loss=lambda r: 6.0)
    (symptom,) = diagnose(jump, 50257)
    assert symptom.past and "came back to 3." in symptom.advice
    (soon,) = diagnose(jump[:910], 50257)
    assert not soon.past
    many = change(made_up(power_law), lambda s: s % 300 == 0, train_loss=lambda r: 6.0)
    (symptom,) = diagnose(many, 50257)
    assert not symptom.past and "5 jumps so far" in symptom.text


def test_a_run_that_explodes_at_once_and_stays_above_its_first_loss_is_sick():
    """As nanoGPT at a learning rate of 3: from 4.2 to 77 in 100 steps, then between 4 and 20."""
    exploded = made_up(lambda s: 4.2 if s == 1 else 12.0 + 60 * math.exp(-s / 100), 800, noise=3.0)
    assert "rising" in [s.kind for s in diagnose(exploded)]


def test_ranks_that_take_turns_at_being_last_do_not_lag():
    turns = {"slowest_rank": lambda r: r["step"] // 20 % 8, "slowest_ratio": lambda r: 1.5}
    assert diagnose(change(published(), lambda s: True, **turns), 50257) == []
    close = {"slowest_rank": lambda r: 3, "slowest_ratio": lambda r: 1.1}
    assert diagnose(change(published(), lambda s: True, **close), 50257) == []


def test_batches_that_come_again_are_found_by_their_ups_and_downs():
    """Each batch is a little harder or easier than others: the same ones, again, show."""
    random = np.random.default_rng(0)
    for period in (7, 60, 400):
        ups = 0.05 * random.normal(size=period)
        again = made_up(lambda s, ups=ups: power_law(s) + ups[s % len(ups)], 1500, noise=0.01)
        found = diagnose(again, 50257)
        assert [s.kind for s in found] == ["repeated"], (period, found)
        assert f"recur every {period} steps" in found[0].text
    once = made_up(lambda s: power_law(s), 1500, noise=0.05)
    assert diagnose(once, 50257) == []


def test_a_loss_beside_the_published_curve_is_called_so():
    def shifted(by, steps):
        return [
            {k: v + by if k.endswith("_loss") and r["step"] > 1 else v for k, v in r.items()}
            for r in published(steps)
        ]

    for steps in (1000, 10_000, 19_560):
        assert diagnose(shifted(0.13, steps), 50257, FINEWEB) == []  # a published one was as far
        assert diagnose(shifted(-0.3, steps), 50257, FINEWEB) == []  # FineWeb-Edu, a better recipe
        found = diagnose(shifted(0.4, steps), 50257, FINEWEB)
        assert [s.kind for s in found] == ["too high"], found
        assert "llm.c's run had" in found[0].text
        (leak,) = diagnose(shifted(-2.5, steps), 50257, FINEWEB)
        assert leak.kind == "too low" and "too good to be true" in leak.text
    assert diagnose(shifted(0.4, 19_560), 50257, {}) == []  # unknown data: symptoms alone


def test_only_runs_like_the_published_one_are_measured_by_it():
    ours = {"n_layer": 12, "n_embd": 768, "init_from": "scratch", "warmup_steps": 715, **FINEWEB}
    assert why_not_comparable(ours, 50257) == why_not_comparable(FINEWEB, None) == ""
    for other, words in (
        ({"data": "data/pydocs"}, "not FineWeb"),
        ({"n_layer": 24, "n_embd": 1024}, "124M"),
        ({"init_from": "gpt2"}, "trained weights"),
        ({"total_batch_size": 2**21}, "524,288"),
        ({"total_batch_size": None}, "524,288"),
        ({"warmup_steps": 5000}, "warm-up"),
    ):
        assert words in why_not_comparable(ours | other, 50257), other
    assert "tokens are not" in why_not_comparable(ours, 65)


def test_the_normal_curve_goes_through_its_points_and_falls():
    for tokens, loss in NORMAL_LOSS.items():
        assert normal_loss(tokens) == pytest.approx(loss)
        assert band(tokens)[0] == pytest.approx(loss)
        assert TABLE["val_loss"][str(round(tokens / 2**19))] == loss
    for tokens, loss in EARLY_LOSS.items():
        assert band(tokens)[0] == pytest.approx(loss) and normal_loss(tokens) is None
    grid = np.geomspace(13_107_200, 10_255_073_280, 300)[1:-1]
    usual, high = zip(*map(band, grid), strict=True)
    assert list(usual) == sorted(usual, reverse=True)
    assert all(0.2 - 1e-9 <= h - u <= 1 + 1e-9 for u, h in zip(usual, high, strict=True))
    assert list(TOLERANCE) == sorted(TOLERANCE) and band(1e6) is band(1e11) is None


def test_a_log_without_steps_and_odd_logs_are_judged_without_a_crash():
    assert symptoms([{"step": 0, "val_loss": 10.8}]) == ["no training step yet"]
    assert "jumps to nan" in symptoms([{"step": 1, "train_loss": None}])[-1]
    for steps in (1, 2, 19, 21, 60):
        log = made_up(power_law, steps, grad_norm=None, tokens_per_sec=None, slowest_rank=0)
        assert diagnose(log, 50257) == []
    constant = [{"step": s, "train_loss": 5.0, "grad_norm": 1.0} for s in range(1, 400)]
    assert diagnose(constant) == []
    assert len({rule.__name__ for rule in RULES}) == len(RULES)


def test_the_verdict_says_which_lines_were_passed_and_whether_they_held():
    def run(*values):
        return [
            {"step": 250 * i, "val_loss": loss, "hellaswag": score}
            for i, (loss, score) in enumerate(values)
        ]

    log = run((10.9, 0.25), (3.20, 0.30), (3.30, 0.31), (3.29, 0.34))
    assert [line.split(": ")[1] for line in verdict(log)] == [
        "passed at step 250", "passed at step 250", "passed at step 750"
    ]  # fmt: skip
    assert "lost again" in verdict(log[:3])[0] and "not reached" in verdict(log[:3])[2]
    assert [line.split(",")[1].split()[:2] for line in verdict(log, "350M")] == [
        ["GPT-2", "350M"], ["GPT-3", "350M"]
    ]  # fmt: skip
    assert verdict([]) == verdict(log, "7B") == []
