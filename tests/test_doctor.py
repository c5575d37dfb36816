"""nanogpt_lib/doctor.py: what is abnormal in a log, and what the run has reached."""

import json
import math

import pytest
from test_logbook import healthy, write

from conftest import ROOT, program
from nanogpt_lib import doctor
from nanogpt_lib.doctor import NORMAL_LOSS, normal_loss, symptoms, verdict
from nanogpt_lib.support.datasets import read_meta
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.run_log import read_log


def test_a_healthy_run_has_no_symptoms_and_every_fault_has_its_own():
    records = healthy()
    assert symptoms(records, 50257) == symptoms(records) == []
    assert symptoms([{"step": 0, "val_loss": 10.8}]) == ["no training step yet"]

    def change(step, **values):
        return [r | values if r["step"] == step and "train_loss" in r else r for r in records]

    slow = [r | {"tokens_per_sec": 5e3} if r["step"] > 80 and "lr" in r else r for r in records]
    faults = {
        "first loss 7.00; a random model has ln(vocabulary) = 10.82": change(1, train_loss=7.0),
        "step 50: the loss jumps to 9.00": change(50, train_loss=9.0),
        "step 60: the loss jumps to nan": change(60, train_loss=math.nan),
        "steps missing or repeated: 99 records up to step 100": [
            r for r in records if r["step"] != 33
        ],
        "validation loss is": [*records, {"step": 100, "val_loss": 6.5}],
        "tokens per second fell from 10,000 to 5,000": slow,
    }
    for expected, log in faults.items():
        found = symptoms(log, 50257)
        assert len(found) == 1 and found[0].startswith(expected), (expected, found)
    assert symptoms(change(1, train_loss=7.0)) == []  # a fine-tuned model may begin anywhere


def log_of_losses(loss_at, steps=2000):
    return [{"step": s, "train_loss": loss_at(s)} for s in range(1, steps + 1)]


def test_a_run_that_stays_where_token_frequencies_end_is_not_called_healthy():
    """Stuck at 7.6 for 2,000 steps; a run that learns slowly or started well is not stuck."""
    stuck = log_of_losses(lambda s: 7.6 + 3.2 * math.exp(-(s - 1) / 40) + 0.05 * math.sin(9 * s))
    assert symptoms(stuck, 50257) == [
        "the loss stays at 7.60 from step 1001 on: little more than token frequencies was learned"
    ]
    assert symptoms(stuck[:499], 50257) == []  # too early to tell
    slow = log_of_losses(lambda s: 10.82 - 1.0 * math.log(s))
    assert symptoms(slow, 50257) == []
    done = log_of_losses(lambda s: 3.3 + 7.5 * math.exp(-(s - 1) / 40))
    assert symptoms(done, 50257) == []
    assert symptoms(stuck) == []  # of a fine-tuned model nothing is known


def test_the_normal_curve_goes_through_its_points_and_falls():
    for tokens, loss in NORMAL_LOSS.items():
        assert normal_loss(tokens) == pytest.approx(loss)
    between = [normal_loss(t) for t in range(131_072_000, 10_255_073_280, 250_000_000)]
    assert between == sorted(between, reverse=True)
    assert normal_loss(1e8) is None and normal_loss(1e11) is None


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


# ---- the program


def test_the_program_finds_a_real_run_normal(tiny_run):
    done = program("doctor.py", tiny_run)
    assert (done.returncode, done.stderr) == (0, "")
    first, last = done.stdout.splitlines()
    assert first.startswith("6 steps, training loss ")
    assert last == f"{tiny_run / 'log.jsonl'}: normal, no symptoms"
    data = json.loads((tiny_run / "config.json").read_text())["data"]
    assert symptoms(read_log(tiny_run / "log.jsonl"), read_meta(data)["vocab_size"]) == []


def test_a_recorded_run_with_gpt2s_tokens_is_read_without_its_data(capsys):
    assert doctor.main([str(ROOT / "notebooks/recorded/log.jsonl")]) == 0
    assert "2,800 steps" in capsys.readouterr().out


def test_a_sick_run_ends_with_status_1_and_a_line_per_symptom(tmp_path, capsys):
    records = [r for r in healthy() if r["step"] != 33]
    records[-1] = {"step": 100, "val_loss": 9.0}
    write(tmp_path / "log.jsonl", records)
    assert doctor.main([str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[1][:14] for line in lines if line.startswith("symptom: ")] == [
        " steps missing", " validation lo"
    ]  # fmt: skip
    assert lines[-1].endswith("log.jsonl: 2 symptoms")


def test_a_run_on_fineweb_is_compared_with_published_ones(tmp_path, capsys):
    records = [{"step": s, "train_loss": 10.8 - 0.9 * math.log(s)} for s in range(1, 2001)]
    records += [{"step": 2000, "val_loss": 3.9, "hellaswag": 0.3}]
    write(tmp_path / "log.jsonl", records)
    for settings, lines in (
        ({"data": "runs/data/fineweb_edu", "total_batch_size": 524_288}, 6),
        ({"data": "data/fineweb", "total_batch_size": "524288"}, 5),  # written by hand
        ({"data": "nowhere/pydocs", "total_batch_size": 524_288}, 2),
        (["no settings"], 2),
    ):
        (tmp_path / "config.json").write_text(json.dumps(settings))
        assert doctor.main([str(tmp_path)]) == 0
        said = capsys.readouterr().out.splitlines()
        assert len(said) == lines, said
        if lines == 6:
            assert said[1] == (
                "validation loss 3.9000 after 1.05 billion tokens; llm.c's run of GPT-2 124M on "
                "FineWeb had 3.86"
            )
            assert said[2] == "val_loss 3.9000, GPT-2 124M 3.2924: not reached"
            assert said[3].endswith("passed at step 2000")
    (tmp_path / "config.json").write_text(json.dumps({"data": "data/fineweb"}))
    assert doctor.main([str(tmp_path), "--size", "774M"]) == 0
    assert "GPT-3 774M 0.5100: not reached" in capsys.readouterr().out


def test_a_log_of_build_nanogpt_is_judged(tmp_path, capsys):
    rows = [f"{s} train {10.9 - 0.9 * math.log(s + 1):.6f}" for s in range(1000)]
    rows.insert(500, "500 val 5.4000\n500 hella 0.2600")
    (tmp_path / "log.txt").write_text("0 val 10.9500\n0 hella 0.2463\n" + "\n".join(rows) + "\n")
    for source in (tmp_path, tmp_path / "log.txt"):
        assert doctor.main([str(source)]) == 0
        said = capsys.readouterr().out
        assert "1,000 steps" in said and "after 0.26 billion tokens" in said
        assert "hellaswag 0.2600, GPT-3 124M 0.3370: not reached" in said


@pytest.mark.parametrize(
    "arguments, message, status",
    [
        (["nowhere"], "nowhere: no such run or log", 1),
        (["."], "has no log.jsonl or log.txt", 1),
        (["odd.txt"], "odd.txt line 1: not `step train|val|hella value`", 1),
        ([], "run", 2),
        ([".", "--size", "7B"], "invalid choice", 2),
    ],
)
def test_bad_arguments_are_one_line(arguments, message, status, tmp_path, monkeypatch, capsys):
    (tmp_path / "odd.txt").write_text("what is this\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UserError, SystemExit)) as error:
        doctor.main(arguments)
    said = str(error.value) if status == 1 else capsys.readouterr().err
    assert message in said and len(said.strip().split("\n")) == 1
    assert status == 1 or error.value.code == status


def test_a_log_that_is_only_begun_is_said(tmp_path, capsys):
    (tmp_path / "log.jsonl").write_text("")
    assert doctor.main([str(tmp_path)]) == 1
    assert "symptom: no training step yet" in capsys.readouterr().out
