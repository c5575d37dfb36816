"""support/run_log.py and logbook.py: a log that survives crashes, and its curves."""

import io
import json
import math
import os
import struct
import subprocess
import sys
import types

import pytest
import torch

from conftest import ROOT
from nanogpt_lib.logbook import (
    FINEWEB_LOSS_GPT2,
    HELLASWAG_GPT2,
    HELLASWAG_GPT3,
    plot_run,
    series,
    smooth,
)
from nanogpt_lib.support import files, run_log
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.run_log import RunLog, external_logger, read_lecture_log, read_log


def healthy(steps: int = 100, vocab_size: int = 50257) -> list[dict]:
    """A log of a made-up healthy run: a loss that falls from ln V, evaluated every ten steps."""
    start, records = math.log(vocab_size), []
    for step in range(steps + 1):
        if step:
            loss = start * (0.5 + 0.5 * math.exp(-(step - 1) / 20)) + 0.05 * math.sin(9 * step)
            record = dict(train_loss=loss, lr=1e-3, grad_norm=1.0, tokens_per_sec=1e4, mfu=None)
            records.append({"step": step, **record, "seconds": 0.1 * step})
        if step % 10 == 0:
            value = start * (0.5 + 0.5 * math.exp(-step / 20))
            records.append({"step": step, "val_loss": value, "hellaswag": 0.25 + step / 1000})
    return records


def write(path, records) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


def run_steps(log: RunLog, first: int, last: int) -> None:
    """Write as train.py does: evaluate before the update when it is due, and after the last."""
    for step in range(first, last + 1):
        if step % 2 == 0:
            log.write(step, val_loss=9 - step / 7)
        if step < last:
            log.write(step + 1, train_loss=9.5 - step / 3, mfu=None)
    log.close()


# ---- reading and writing


def test_a_log_reads_back_as_it_was_written(tmp_path):
    log = RunLog(tmp_path / "log.jsonl")
    log.write(1, train_loss=0.1 + 0.2, mfu=None, note="ü")
    assert read_log(tmp_path / "log.jsonl") == [
        {"step": 1, "train_loss": 0.30000000000000004, "mfu": None, "note": "ü"}
    ]  # before close: every record is on its way to the disk at once
    log.close()


def test_a_log_cut_at_any_byte_reads_as_its_whole_records(tmp_path):
    records = healthy(6)
    write(tmp_path / "log.jsonl", records)
    data, path = (tmp_path / "log.jsonl").read_bytes(), tmp_path / "cut.jsonl"
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        pieces = data[:size].split(b"\n")
        whole = len(pieces) - 1 + (data[: size + 1].endswith(b"\n") and pieces[-1] != b"")
        assert read_log(path) == records[:whole], size


@pytest.mark.parametrize(
    "line", ["{oops", "[]", "7", '{"loss": 1}', '{"step": "1"}', "\x00\x00", '{"step": 1}{']
)
def test_damage_before_the_end_is_said_with_file_and_line(line, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 0}\n' + line + '\n{"step": 2}\n', encoding="utf-8")
    with pytest.raises(UserError, match="log.jsonl line 2: not a log record"):
        read_log(path)


def test_a_missing_log_is_said(tmp_path):
    with pytest.raises(UserError, match="nowhere.jsonl: no such log"):
        read_log(tmp_path / "nowhere.jsonl")


def test_a_new_run_never_truncates_a_log(tmp_path):
    path = tmp_path / "log.jsonl"
    run_steps(RunLog(path), 0, 4)
    before = path.read_bytes()
    with pytest.raises(UserError, match="log.jsonl: already exists"):
        RunLog(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("checkpoint", range(7))
@pytest.mark.parametrize("torn", ["", '{"step": 7, "tra'])
def test_a_resumed_log_equals_that_of_an_uninterrupted_run(checkpoint, torn, tmp_path):
    run_steps(RunLog(tmp_path / "whole.jsonl"), 0, 9)
    run_steps(RunLog(tmp_path / "killed.jsonl"), 0, 6)
    with open(tmp_path / "killed.jsonl", "a", encoding="utf-8") as file:
        file.write(torn)
    run_steps(RunLog(tmp_path / "killed.jsonl", resume_step=checkpoint), checkpoint, 9)
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not list(tmp_path.glob("*.tmp"))


def test_a_log_is_shortened_by_way_of_a_file_that_is_on_the_disk(tmp_path, monkeypatch):
    """A power cut while a run resumes leaves the old log or the new one, never a part."""
    path, synced = tmp_path / "log.jsonl", []
    run_steps(RunLog(path), 0, 6)
    before, fsync, replace = path.read_bytes(), files.os.fsync, files.os.replace
    monkeypatch.setattr(files.os, "fsync", lambda fd: (synced.append(fd), fsync(fd)))

    def fail(source, target):
        assert synced  # flushed before it takes the name
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError):
        RunLog(path, resume_step=2)
    assert path.read_bytes() == before
    monkeypatch.setattr(files.os, "replace", replace)
    RunLog(path, resume_step=2).close()
    assert [r["step"] for r in read_log(path)] == [0, 1, 2]


def test_logs_without_checksums_resume(tmp_path):
    """As older versions and other programs write them."""
    path = tmp_path / "log.jsonl"
    write(path, [{"step": 0, "val_loss": 9.0}, {"step": 1, "train_loss": 9.0}])
    run_steps(RunLog(path, resume_step=1), 1, 3)
    assert [r["step"] for r in read_log(path)] == [0, 1, 2, 2, 3]
    assert all("crc" in json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.parametrize("old", ["1.25", '"step": 1'])
def test_a_changed_digit_is_damage(old, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(run_log.log_line({"step": 1, "train_loss": 1.25}))
    assert read_log(path) == [{"step": 1, "train_loss": 1.25}]
    path.write_text(path.read_text().replace(old, old.replace("1", "3")))
    with pytest.raises(UserError, match="line 1: not a log record .checksum mismatch"):
        read_log(path)


def test_logs_of_the_lecture_are_read_in_our_form(tmp_path):
    """Its training line of step s is the loss of update s + 1; evaluations come before it."""
    path = tmp_path / "log.txt"
    path.write_text("0 val 10.9500\n0 hella 0.2463\n0 train 10.955000\n1 train 10.400000\n2 tr")
    records = read_lecture_log(path)
    assert series(records, "val_loss") == ([0], [10.95])
    assert series(records, "hellaswag") == ([0], [0.2463])
    assert series(records, "train_loss") == ([1, 2], [10.955, 10.4])
    with pytest.raises(UserError, match="no such log"):
        read_lecture_log(tmp_path / "none.txt")
    for line in ("1 loss 3.0", "1 train", "x train 3.0", "1 train three"):
        path.write_text(f"0 val 3.0\n{line}\n")
        with pytest.raises(UserError, match="log.txt line 2: not"):
            read_lecture_log(path)


def test_records_of_a_killed_process_are_in_the_file(tmp_path):
    """No close, no exit handlers: the process is gone after the third record."""
    program = (
        "import os, sys\n"
        "from nanogpt_lib.support.run_log import RunLog\n"
        "log = RunLog(sys.argv[1])\n"
        "for step in range(3):\n"
        "    log.write(step, train_loss=1.0)\n"
        "os._exit(9)\n"
    )
    path = tmp_path / "log.jsonl"
    done = subprocess.run([sys.executable, "-c", program, str(path)], cwd=ROOT, timeout=60)
    assert done.returncode == 9
    assert [r["step"] for r in read_log(path)] == [0, 1, 2]


# ---- other loggers


def test_loggers_that_are_not_installed_are_named(tmp_path, monkeypatch):
    for kind, module in (("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UserError, match=f"--logger {kind}: not installed"):
            external_logger(kind, tmp_path, {})


def test_external_loggers_get_the_same_numbers(tmp_path, monkeypatch):
    """Against the interface of both packages; neither has to be installed."""
    seen = []

    class SummaryWriter:
        def __init__(self, folder):
            seen.append(folder)

        def add_scalar(self, name, value, step):
            seen.append((step, name, value))

        def flush(self):
            seen.append("flush")

    board = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    run = types.SimpleNamespace(log=lambda values, step: seen.append((step, values)))
    wandb = types.SimpleNamespace(init=lambda **how: seen.append(how["config"]) or run)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for kind in ("tensorboard", "wandb", "none"):
        log = RunLog(tmp_path / kind, also=external_logger(kind, "out", {"seed": 1}))
        log.write(3, train_loss=2.5, mfu=None)
        log.close()
        assert read_log(tmp_path / kind) == [{"step": 3, "train_loss": 2.5, "mfu": None}]
    assert seen == [
        "out", (3, "train_loss", 2.5), "flush", {"seed": 1}, (3, {"train_loss": 2.5})
    ]  # fmt: skip


LOGGED = """
import sys
from nanogpt_lib.support.run_log import RunLog, external_logger
kind, out = sys.argv[1:]
log = RunLog(f"{out}/log.jsonl", also=external_logger(kind, out, {"seed": 1337}))
for step in range(1, 4):
    log.write(step, train_loss=10.5 / step, mfu=None)
    log.write(step, val_loss=11.5 / step)
log.close()
"""
VALUES = {
    (name, s): x / s for name, x in (("train_loss", 10.5), ("val_loss", 11.5)) for s in (1, 2, 3)
}


def log_as_a_process(kind, out):
    """Log six records in a separate process, without network or account."""
    env = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    command = [sys.executable, "-c", LOGGED, kind, str(out)]
    done = subprocess.run(
        command, cwd=ROOT, env=env, timeout=120, capture_output=True, text=True, errors="replace"
    )
    assert done.returncode == 0, done.stderr
    assert len(read_log(out / "log.jsonl")) == 6  # the file is always written


def test_tensorboard_reads_back_what_was_logged(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_as_a_process("tensorboard", tmp_path)
    events = EventAccumulator(str(tmp_path)).Reload()
    found = {(n, e.step): e.value for n in events.Tags()["scalars"] for e in events.Scalars(n)}
    assert found == pytest.approx(VALUES)


def leveldb_records(data, block=32768):
    """The records of a .wandb file: a header of 7 bytes, then LevelDB's log format."""
    place, parts = 7, []
    while place + 7 <= len(data):
        if block - place % block < 7:  # a block's last bytes hold no header
            place += block - place % block
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts.append(data[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part of one
            yield b"".join(parts)
            parts = []


def test_an_offline_wandb_run_holds_the_values_and_the_settings(tmp_path):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    log_as_a_process("wandb", tmp_path)
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    found, settings = {}, {}
    for data in leveldb_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        row = {i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.history.item}
        found |= {(name, row["_step"]): row[name] for name in row if name.endswith("loss")}
        settings |= {u.key: json.loads(u.value_json) for u in record.run.config.update}
    assert found == pytest.approx(VALUES) and settings["seed"] == 1337


# ---- curves


def test_series_takes_one_column_and_leaves_out_what_is_not_there():
    records = [{"step": 0, "val_loss": 2.0}, {"step": 1, "mfu": None}, {"step": 2, "val_loss": 0.0}]
    assert series(records, "val_loss") == ([0, 2], [2.0, 0.0])
    assert series(records, "mfu") == series([], "val_loss") == ([], [])


def test_smoothing_equals_the_corrected_first_moment_of_adam():
    values = torch.rand(60, generator=torch.Generator().manual_seed(0)).double().tolist()
    for weight in (0.5, 0.9):
        number = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        adam = torch.optim.Adam([number], betas=(weight, 0.999))
        for n, (value, ours) in enumerate(zip(values, smooth(values, weight), strict=True), 1):
            number.grad = torch.tensor([value], dtype=torch.float64)
            adam.step()
            theirs = adam.state[number]["exp_avg"].item() / (1 - weight**n)
            assert ours == pytest.approx(theirs, abs=1e-12)
    assert smooth([]) == [] and smooth([3.0] * 5) == pytest.approx([3.0] * 5)


def picture(figure) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()


def test_plots_show_the_lines_of_every_size_and_repeat_byte_for_byte():
    records = healthy()
    for size in HELLASWAG_GPT2:
        figure = plot_run(records, references=True, size=size)
        levels = [{line.get_ydata()[0] for line in axis.lines} for axis in figure.axes]
        assert {HELLASWAG_GPT2[size], HELLASWAG_GPT3[size], 0.25} <= levels[1]
        assert (FINEWEB_LOSS_GPT2.get(size) in levels[0]) == (size == "124M")
        assert all(axis.get_xlabel() and axis.get_ylabel() for axis in figure.axes)
    assert picture(plot_run(records)).startswith(b"\x89PNG")
    assert picture(plot_run(records)) == picture(plot_run(records))
    without = [{k: v for k, v in r.items() if k != "hellaswag"} for r in records]
    assert len(plot_run(without).axes) == 1
    assert len(plot_run([]).axes) == 1  # a run that has only begun


def test_the_log_of_a_real_run_can_be_drawn(tiny_run):
    records = read_log(tiny_run / "log.jsonl")
    assert series(records, "train_loss")[0] == [1, 2, 3, 4, 5, 6]
    assert plot_run(records).axes
