"""nanogpt_lib/doctor.py: what is abnormal in a log, and what the run has reached."""

import json
import math
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree

import pytest
from test_diagnosis import made_up, power_law, published
from test_logbook import healthy, write

from conftest import ROOT, program
from nanogpt_lib import doctor
from nanogpt_lib.doctor import symptoms
from nanogpt_lib.support.charts import Curve, Panel, svg_chart, text_chart
from nanogpt_lib.support.console_logs import read_any_log
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
        ({"data": "data/fineweb", "total_batch_size": "524288"}, 6),  # written by hand
        ({"data": "nowhere/pydocs", "total_batch_size": 524_288}, 2),
        (["no settings"], 2),
    ):
        (tmp_path / "config.json").write_text(json.dumps(settings))
        assert doctor.main([str(tmp_path)]) == 0
        said = capsys.readouterr().out.splitlines()
        assert len(said) == lines, said
        if settings == {"data": "runs/data/fineweb_edu", "total_batch_size": 524_288}:
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
    rows = [f"{s} train {10.9 - 0.95 * math.log(s + 1):.6f}" for s in range(1000)]
    rows.insert(500, "500 val 5.1000\n500 hella 0.2600")
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
        (["cut.txt"], "cut.txt line 2: not `step train|val|hella value`", 1),
        (["odd.txt"], "odd.txt: no log of train.py, nanoGPT, llm.c or build-nanogpt", 1),
        ([], "run", 2),
        ([".", "--size", "7B"], "invalid choice", 2),
        ([".", "--every", "0"], "--every must be at least 1", 2),
    ],
)
def test_bad_arguments_are_one_line(arguments, message, status, tmp_path, monkeypatch, capsys):
    (tmp_path / "odd.txt").write_text("what is this\n")
    (tmp_path / "cut.txt").write_text("0 train 10.9\nwhat is this\n")
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


def test_a_run_from_scratch_stuck_at_frequencies_is_sick_as_the_program_sees_it(tmp_path, capsys):
    """With the settings that train.py writes; init_from is then "scratch", not empty."""
    stuck = made_up(lambda s: 7.6 + 3.2 * math.exp(-(s - 1) / 40))
    write(tmp_path / "log.jsonl", stuck)
    settings = {"data": "data/nowhere", "init_from": "scratch", "total_batch_size": 524_288}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert doctor.main([str(tmp_path)]) == 1
    assert "symptom: the loss stays at 7." in capsys.readouterr().out
    (tmp_path / "config.json").write_text(json.dumps(settings | {"init_from": "gpt2"}))
    assert doctor.main([str(tmp_path)]) == 0


# ---- other programs' logs

NANOGPT = """found vocab_size = 65 (inside data/shakespeare_char/meta.json)
step 0: train loss 4.2874, val loss 4.2823
iter 0: loss 4.2654, time 39205.12ms, mfu -100.00%
iter 10: loss 3.1456, time 30.13ms, mfu -100.00%
saving checkpoint to out
step 20: train loss 2.5, val loss 2.6
iter 20: loss 2.7, time 1e2ms, mfu 3.10%
iter 30: loss nan, time 30.00ms, mfu 3.2"""
PRINTED = """using device: cuda
validation loss: 10.9511
step     0 | loss: 10.955029 | lr 8.3916e-07 | norm: 15.3366 | dt: 82809.97ms | tok/sec: 6331.22
step     1 | loss: 10.894033 | lr 1.6783e-06 | norm: 14.9014 | dt: 340.91ms | tok/sec: 1537895.2
"""
LLMC = (
    "s:0 tel:11.0092\ns:0 trl:11.0091 lr:0.000001 norm:15.37\ns:1 trl:10.9598\ns:250 eval:0.2501\n"
)


def test_what_other_programs_write_is_read(tmp_path):
    """An update from s to s + 1 is a training record of step s + 1; a cut last line is left out."""
    path = tmp_path / "log.txt"
    expected = {
        NANOGPT: ("nanoGPT", {(0, "val_loss"): 4.2823, (1, "train_loss"): 4.2654,
                              (1, "ms"): 39205.12, (11, "train_loss"): 3.1456, (11, "ms"): 30.13,
                              (20, "val_loss"): 2.6,
                              (21, "train_loss"): 2.7, (21, "ms"): 100.0}),
        PRINTED: ("build-nanogpt", {(1, "train_loss"): 10.955029, (1, "lr"): 8.3916e-07,
                                    (1, "grad_norm"): 15.3366, (1, "ms"): 82809.97,
                                    (2, "train_loss"): 10.894033, (2, "lr"): 1.6783e-06,
                                    (2, "grad_norm"): 14.9014, (2, "ms"): 340.91}),
        LLMC: ("llm.c", {(0, "val_loss"): 11.0092, (1, "train_loss"): 11.0091, (1, "lr"): 1e-6,
                         (1, "grad_norm"): 15.37, (2, "train_loss"): 10.9598,
                         (250, "hellaswag"): 0.2501}),
    }  # fmt: skip
    for text, (wrote, values) in expected.items():
        path.write_text(text)
        name, records = read_any_log(path)
        assert name == wrote
        found = {(r["step"], k): v for r in records for k, v in r.items() if k != "step"}
        assert found == values


def test_nanogpts_and_llmcs_runs_are_judged_as_ours(tmp_path, capsys):
    losses = [power_law(s) for s in range(1, 20_001, 10)]
    healthy_one = "".join(
        f"iter {10 * i}: loss {x:.4f}, time 30.00ms, mfu 3.20%\n" for i, x in enumerate(losses)
    )
    (tmp_path / "out.txt").write_text("compiling the model...\n" + healthy_one)
    assert doctor.main([str(tmp_path / "out.txt")]) == 0
    assert "19,991 steps" in capsys.readouterr().out
    stuck = re.sub(r"loss \d\S+,", "loss 7.6000,", healthy_one).replace("7.6000", "10.9000", 1)
    (tmp_path / "out.txt").write_text(stuck)
    assert doctor.main([str(tmp_path / "out.txt")]) == 1
    assert "the loss stays at 7.60" in capsys.readouterr().out
    llmc = "".join(
        f"s:{r['step'] - 1} trl:{r['train_loss']:.4f} lr:0.0006 norm:{r['grad_norm']}\n"
        if "train_loss" in r else f"s:{r['step']} tel:{r['val_loss']}\n"
        for r in published()
    )  # fmt: skip
    (tmp_path / "main.log").write_text(llmc)
    assert doctor.main([str(tmp_path / "main.log")]) == 0
    assert "val_loss 3.2722, GPT-2 124M 3.2924: passed at step 15750" in capsys.readouterr().out


# ---- pictures


def test_a_chart_in_a_terminal_shows_the_curve_with_its_ends():
    falling = Panel("loss", [Curve("", range(1, 101), [10 - s / 20 for s in range(1, 101)])])
    title, *rows, steps = text_chart(falling, 60, 10)
    assert title == "loss" and len(rows) == 10 and max(map(len, rows)) <= 60
    assert rows[0].strip().startswith("10") and rows[-1].strip().startswith("4.7")
    assert steps.split() == ["1", "100"]
    places = [min(i for i, c in enumerate(row) if "\u2800" < c < "\u2900") for row in rows]
    assert places == sorted(places) and places[-1] - places[0] > 40  # from top left to bottom right
    plain = text_chart(falling, 60, 10, plain=True)
    assert "".join(plain).isascii() and sum(row.count("*") for row in plain) >= 50
    assert len(text_chart(Panel("none", [Curve("", [], [])]))) == 14
    flat = Panel("flat", [Curve("", [1, 2, 3], [5.0, math.nan, 5.0])], {"level": 5.0})
    assert len(text_chart(flat)) == 14 and svg_chart(flat)


def test_the_page_is_self_contained_and_marks_what_is_wrong(tmp_path, capsys):
    write(tmp_path / "log.jsonl", made_up(lambda s: 7.6 + 3.2 * math.exp(-(s - 1) / 40)))
    where = tmp_path / "page & run.html"
    assert doctor.main([str(tmp_path / "log.jsonl"), "--html", str(where)]) == 1
    text = where.read_text(encoding="utf-8")
    assert "<script" not in text and "http:" not in text and "https:" not in text
    assert "1 symptom" in text and ">stuck</text>" in text and "refresh" not in text
    for chart in re.findall(r"<svg.*?</svg>", text):
        ElementTree.fromstring(chart)
    assert text.count("<svg") == 1 and len(text) < 60_000  # 2,000 steps, thinned
    capsys.readouterr()


def test_following_ends_with_the_run_and_its_page_reloads_itself_until_then(tmp_path):
    records = made_up(power_law, 60, grad_norm=0.5, tokens_per_sec=1000.0)
    log, page = tmp_path / "log.jsonl", tmp_path / "run.html"
    write(log, records[:30])
    (tmp_path / "config.json").write_text(json.dumps({"max_steps": 60}))
    command = [sys.executable, "nanogpt_lib/doctor.py", str(tmp_path), "--follow", "--every", "1"]
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    following = subprocess.Popen(
        [*command, "--html", str(page)], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env
    )
    assert following.stdout.readline() == f"{log}: normal, no symptoms\n"
    assert 'http-equiv="refresh" content="1"' in page.read_text(encoding="utf-8")
    with open(log, "a", encoding="utf-8") as file:
        for record in records[30:]:
            file.write(json.dumps(record | {"train_loss": 9.9} if record["step"] > 55 else record))
            file.write("\n")
    assert following.stdout.readline() == f"{log}: 1 symptom\n"
    assert following.wait(60) == 1
    following.stdout.close()
    assert "refresh" not in page.read_text(encoding="utf-8")


def test_a_log_that_no_longer_grows_is_said_to_be_silent(tmp_path):
    records = [r | {"seconds": 0.5 * r["step"]} for r in made_up(power_law, 30)]
    write(tmp_path / "log.jsonl", records)
    report = doctor.examine(tmp_path / "log.jsonl", "124M")
    assert doctor.silence(report, time.time()) == ""
    assert "no new line for 60 min" in doctor.silence(report, time.time() + 3600)
