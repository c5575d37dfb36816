"""What the training program promises, checked on real runs."""

import errno
import itertools
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from conftest import ROOT, TINY, log_of, program
from nanogpt_lib import train
from nanogpt_lib.choices import model_config
from nanogpt_lib.config import TrainConfig
from nanogpt_lib.huggingface import save_huggingface
from nanogpt_lib.load import load_model
from nanogpt_lib.model import GPT, count_parameters
from nanogpt_lib.presets import PRESETS
from nanogpt_lib.recipes.text import write_splits
from nanogpt_lib.support.checkpoint_files import checkpoints
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.run_log import read_log
from nanogpt_lib.tokenizer import GPT2Tokenizer


def losses(records: list[dict], name: str = "train_loss") -> list[float]:
    return [r[name] for r in records if name in r]


def test_a_run_leaves_config_log_checkpoints_samples_and_plot(tiny_run):
    for name in ("config.json", "log.jsonl", "samples.txt", "loss.png"):
        assert (tiny_run / name).stat().st_size > 0, name
    assert [p.name for p in checkpoints(tiny_run)] == ["step_000002", "step_000004", "step_000006"]
    assert (tiny_run / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_last_evaluation_and_checkpoint_come_after_the_last_update(tiny_run):
    records = log_of(tiny_run)
    assert [r["step"] for r in records if "val_loss" in r] == [0, 3, 6]
    assert records[-1]["step"] == 6 and "val_loss" in records[-1]
    assert checkpoints(tiny_run)[-1].name == "step_000006"


def test_saving_does_not_depend_on_evaluating(tiny_run):
    # save_every 2, eval_every 3: steps 2 and 4 were saved although nothing was evaluated there
    evaluated = {r["step"] for r in log_of(tiny_run) if "val_loss" in r}
    assert {2, 4}.isdisjoint(evaluated)


def test_first_validation_loss_is_that_of_guessing(tiny_run, tiny_data):
    _, tokenizer = load_model(str(tiny_run))
    guess = math.log(tokenizer.vocab_size)
    assert abs(losses(log_of(tiny_run), "val_loss")[0] - guess) < 0.05 * guess


def test_two_processes_and_any_micro_batch_give_the_same_losses(tiny_data, tmp_path):
    fixed = [*TINY, "--data", tiny_data, "--max-steps", "20", "--total-batch-size", "512"]
    logs = []
    for name, rows, ranks in (("a", 16, 0), ("b", 4, 0), ("c", 4, 2)):
        out = tmp_path / name
        done = program("train.py", *fixed, "--batch-size", rows, "--out", out, ranks=ranks)
        assert done.returncode == 0, done.stderr
        logs.append(log_of(out))
        assert done.stdout.count("everything is in") == 1  # only rank 0 speaks
        assert (out / "samples.txt").read_text(encoding="utf-8").count("=== step") == 1
    for other in logs[1:]:
        for name in ("train_loss", "val_loss", "grad_norm"):
            ours, theirs = losses(logs[0], name), losses(other, name)
            assert len(ours) == len(theirs) and ours
            assert max(abs(x - y) for x, y in zip(ours, theirs, strict=True)) < 1e-4, name
    assert losses(logs[0])[-1] < losses(logs[0])[0] - 0.3  # and it learns


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM that a program can catch")
@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_and_saves(tiny_data, tmp_path, number, status):
    out = tmp_path / "run"
    flags = [*TINY, "--data", tiny_data, "--max-steps", "100000", "--save-every", "0"]
    command = [sys.executable, str(ROOT / "nanogpt_lib/train.py"), *map(str, flags)]
    process = subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.PIPE, text=True)
    while not (out / "log.jsonl").exists() or len(read_log(out / "log.jsonl")) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == status and "--resume" in stdout
    last = losses(log_of(out), "step")[-1]
    assert [p.name for p in checkpoints(out)] == [f"step_{last:06d}"]


def test_seconds_count_updates_and_not_evaluations(tiny_data, tmp_path, monkeypatch):
    clock = itertools.count()  # every look at the clock is one second later
    monkeypatch.setattr(train.time, "perf_counter", lambda: next(clock))
    evaluate = train.validation_loss

    def slow(*args, **kwargs):
        for _ in range(1000):
            next(clock)
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(train, "validation_loss", slow)
    train.main([*TINY, "--data", str(tiny_data), "--out", str(tmp_path / "run")])
    assert losses(read_log(tmp_path / "run/log.jsonl"), "seconds") == [1, 2, 3, 4, 5, 6]


def test_samples_and_saved_names_are_right_with_compile_on(tiny_data, tmp_path, monkeypatch):
    # aot_eager traces and differentiates like the real thing, without needing a C++ compiler
    compiled = []
    compile_ = torch.compile
    monkeypatch.setattr(
        torch,
        "compile",
        lambda m, mode=None: compiled.append(m) or compile_(m, backend="aot_eager"),
    )
    out = tmp_path / "run"
    flags = ["--compile", "on", "--sample-every", "3", "--data", str(tiny_data), "--out", str(out)]
    assert train.main([*TINY, *flags]) == 0 and compiled
    assert (out / "samples.txt").read_text(encoding="utf-8").count("=== step") == 2
    model, _ = load_model(str(out))
    assert not [name for name in model.state_dict() if "_orig_mod" in name]


def test_a_run_can_start_from_another_run_and_from_a_hugging_face_folder(tiny_run, tmp_path):
    model, tokenizer = load_model(str(tiny_run))
    save_huggingface(tmp_path / "hf", vars(model.config), model.state_dict(), tokenizer)
    data = str(train.parse_config(["--resume", "--out", str(tiny_run)]).data)
    firsts = []
    for name, source in (("a", tiny_run), ("b", tmp_path / "hf")):
        flags = [*TINY, "--data", data, "--max-steps", "1", "--init-from", str(source)]
        out = str(tmp_path / name)
        assert train.main([*flags, "--vocab-multiple", "64", "--out", out]) == 0
        firsts.append(losses(log_of(tmp_path / name), "val_loss")[0])
    last = losses(log_of(tiny_run), "val_loss")[-1]
    assert firsts == pytest.approx([last, last], abs=1e-5)


@pytest.fixture
def fox(tmp_path) -> str:
    """A few hundred GPT-2 tokens."""
    tokenizer = GPT2Tokenizer()
    ids = np.array(tokenizer.encode("The quick brown fox jumps over the lazy dog. " * 40))
    meta = {"name": "fox", "source": "test", "tokenizer": tokenizer.describe(), "vocab_size": 50257}
    write_splits(tmp_path / "data", meta, ids[:300], ids[300:])
    return str(tmp_path / "data")


def test_hellaswag_is_scored_in_the_loop_with_compile_on(fox, tmp_path, monkeypatch, capsys):
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda m, mode=None: compile_(m, backend="aot_eager"))
    out, items = tmp_path / "run", str(ROOT / "data/hellaswag_own.jsonl")
    flags = [*TINY, "--data", fox, "--out", str(out), "--compile", "on", "--block-size", "64"]
    flags += ["--hellaswag-every", "3", "--hellaswag-data", items, "--sample-prompt", "Hello"]
    assert train.main(flags) == 0
    assert len(losses(log_of(out), "hellaswag")) == 3  # steps 0, 3 and 6
    assert "our own: not a HellaSwag score" in capsys.readouterr().out


def test_gpt2s_configuration_takes_real_steps_with_gpt2_tokens(fox, tmp_path):
    """The whole preset except its width: its blocks, vocabulary, padding, optimizer, schedule."""
    config = PRESETS["gpt2-124m"]
    with torch.device("meta"):
        model = GPT(model_config(TrainConfig(**config), vocab_size=50257))
    assert count_parameters(model) == 124_439_808 + (50304 - 50257) * 768
    flags = "gpt2-124m --n-embd 48 --max-steps 12 --batch-size 1 --total-batch-size 64 "
    flags += "--block-size 64 --eval-tokens 64 --warmup-steps 0 --save-every 0 --sample-tokens 1 "
    flags += "--hellaswag-every 0 --device cpu --sample-prompt Hello --learning-rate 5e-3"
    out = tmp_path / "run"
    assert train.main([*flags.split(), "--data", fox, "--out", str(out)]) == 0
    records = log_of(out)
    assert abs(losses(records)[0] - math.log(50257)) < 0.1
    assert losses(records, "val_loss")[-1] < losses(records, "val_loss")[0] - 1


BAD = {
    "unknown flag": (["--no-such-flag", "3"], "unrecognized arguments: --no-such-flag"),
    "not a number": (["--max-steps", "many"], "invalid int value: 'many'"),
    "negative": (["--dropout", "-0.5"], "--dropout must be from 0"),
    "zero steps": (["--max-steps", "0"], "--max-steps must be greater than 0"),
    "heads": (["--n-embd", "30", "--n-head", "4"], "not divisible by --n-head 4"),
    "tokens per step": (["--total-batch-size", "1000"], "the nearest that can be is 992"),
    "no data": (["--data", "no/such/folder"], "no such data folder"),
    "no run": (["--resume", "--out", "no/such/run"], "no run to resume"),
    "prompt letters": (["--sample-prompt", "\u4f60"], "--sample-prompt: character '\u4f60' is not"),
    "unknown start": (["--init-from", "no/such/model"], "no/such/model"),
    "no items": (["--hellaswag-every", "1", "--hellaswag-data", "nowhere"], "no such file"),
    "block size": (
        ["--block-size", "64000", "--total-batch-size", "256000"],
        "too few for block_size",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_line(case, tiny_data, tmp_path, capsys):
    flags, expected = BAD[case]
    out = tmp_path / "run"
    arguments = [*TINY, "--data", str(tiny_data), "--out", str(out), *flags]
    with pytest.raises((UserError, SystemExit)) as caught:
        train.main(arguments)
    message = str(caught.value)
    if caught.type is SystemExit:
        assert caught.value.code == 2
        message = capsys.readouterr().err
    assert expected in message and "\n" not in message.strip()
    assert not (out / "log.jsonl").exists()


def test_a_device_that_is_not_there_is_named(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    flags = [*TINY, "--data", str(tiny_data), "--out", str(tmp_path / "run"), "--device", "cuda"]
    with pytest.raises(UserError, match="--device cuda: not available here"):
        train.main(flags)


def test_a_directory_that_holds_a_run_is_refused_and_untouched(tiny_run, tiny_data):
    before = {p: p.stat().st_mtime_ns for p in tiny_run.rglob("*")}
    done = program("train.py", *TINY, "--data", tiny_data, "--out", tiny_run)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "holds a run; add --resume" in done.stderr
    assert {p: p.stat().st_mtime_ns for p in tiny_run.rglob("*")} == before


def test_a_run_without_a_whole_checkpoint_is_not_resumed(tiny_run, tmp_path):
    out = shutil.copytree(tiny_run, tmp_path / "copy")
    for folder in checkpoints(out):
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match="no intact checkpoint"):
        train.main(["--resume", "--out", str(out)])


def test_a_metric_that_a_step_computes_is_logged_and_shown(
    tiny_data, tmp_path, monkeypatch, capsys
):
    step = train.update

    def with_metric(run, stopper):
        metrics, stop = step(run, stopper)
        return {**metrics, "weight_norm": 12.5, "empty": math.nan}, stop

    monkeypatch.setattr(train, "update", with_metric)
    flags = [*TINY, "--data", str(tiny_data), "--out", str(tmp_path), "--max-steps", "1"]
    assert train.main(flags) == 0
    (record,) = [r for r in log_of(tmp_path) if "train_loss" in r]
    assert record["weight_norm"] == 12.5 and record["empty"] is None
    assert re.search(r"step +1 \| loss .* \| weight_norm 12.5 \| .* left", capsys.readouterr().out)


def test_a_file_that_cannot_be_read_is_named_not_the_run_directory(
    tiny_data, tmp_path, monkeypatch
):
    def broken(run):
        raise OSError(errno.EIO, "Input/output error", "shard_7.npy")

    monkeypatch.setattr(train, "gradients", broken)
    with pytest.raises(UserError) as error:
        train.main([*TINY, "--data", str(tiny_data), "--out", str(tmp_path / "run")])
    assert str(error.value) == "shard_7.npy: Input/output error; continue with --resume"


def test_rows_give_way_where_more_processes_share_a_step_and_the_losses_stay(
    tiny_data, tmp_path, capsys
):
    """Quickstart's own 32 rows per step on two real processes, and at most 22 rows at a time."""
    flags = ["quickstart", "--n-layer", "1", "--data", str(tiny_data), "--max-steps", "3"]
    flags += ["--eval-tokens", "960", "--sample-tokens", "8", "--dtype", "float32"]
    flags += ["--device", "cpu", "--out"]
    two = program("train.py", *flags, tmp_path / "two", ranks=2)
    assert two.returncode == 0, two.stderr
    assert "16 rows × 64 × 2 processes (ddp) × 1 micro-step(s), not 32 rows" in two.stdout
    assert train.main([*flags, str(tmp_path / "one")]) == 0
    assert "32 rows × 64 × 1 process × 1 micro-step(s)\n" in capsys.readouterr().out
    assert train.main([*flags, str(tmp_path / "odd"), "--batch-size", "22"]) == 0
    assert "16 rows × 64 × 1 process × 2 micro-step(s), not 22 rows" in capsys.readouterr().out
    one = losses(log_of(tmp_path / "one"))
    for other in ("two", "odd"):
        assert losses(log_of(tmp_path / other)) == pytest.approx(one, abs=1e-4)
