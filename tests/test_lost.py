"""Nothing is lost: kills, signals, full disks, damaged and hostile files, a loss that is NaN.

The long campaigns are in `make torture`; this file has a few of their kills and damaged files.
"""

import contextlib
import gc
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fuzz
import numpy as np
import pytest
import torch
import torture

from conftest import ROOT, TINY, log_of
from nanogpt_lib import run as run_module
from nanogpt_lib import train
from nanogpt_lib.arguments import parse_config
from nanogpt_lib.checkpoint import newest_checkpoint
from nanogpt_lib.config import as_dict
from nanogpt_lib.load import load_model
from nanogpt_lib.support import guard
from nanogpt_lib.support.checkpoint_files import checkpoints
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.guard import claim
from nanogpt_lib.support.run_log import read_log

posix = pytest.mark.skipif(os.name == "nt", reason="signals and limits of POSIX")


def flags(data, out, *more) -> list[str]:
    return [*TINY, "--data", str(data), "--out", str(out), *map(str, more)]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def same_end(a: Path, b: Path) -> None:
    assert log_of(a) == log_of(b)
    assert weights(checkpoints(a)[-1]) == weights(checkpoints(b)[-1])


# --- kills and signals --------------------------------------------------------------------------


@posix
def test_killed_at_random_moments_a_run_ends_as_if_undisturbed(tmp_path):
    count = torture.Count()
    torture.campaign(tmp_path, kills=2, ranks=1, seed=4, count=count)
    assert sum(count.kills.values()) == 2 and max(count.repeated) <= torture.SAVE_EVERY


@posix
def test_torchrun_told_to_end_saves_once_and_leaves_no_process(tiny_data, tmp_path):
    rng = np.random.default_rng(0)
    run = torture.Ordeal(tiny_data, tmp_path / "run", 2, rng, torture.Count())
    run.start("--max-steps", "100000", "--save-every", "0")
    assert run.wait_until(lambda: run.logged() >= 3)
    workers = run.workers()
    for pid in (run.process.pid, *workers):  # as Slurm does: every process, and torchrun passes on
        os.kill(pid, signal.SIGTERM)
    assert run.process.wait(timeout=60) != 0
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    folder, state = newest_checkpoint(run.out)
    assert len(checkpoints(run.out)) == 1 and state["step"] == run.logged() >= 3
    assert run.said().count("stopped after step") == 1


@posix
def test_every_request_to_end_finishes_the_step_saves_and_ends_with_the_customary_status(
    tiny_data, tmp_path
):
    """A dropped ssh connection, Slurm's warning, a scheduler, Ctrl-C."""
    numbers = (signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
    outs = {number: tmp_path / number.name for number in numbers}
    runs, how = {}, {"stdout": subprocess.PIPE, "text": True}
    # a suite that was started by nohup would hand on that SIGHUP is ignored
    how["preexec_fn"] = lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for number, out in outs.items():
        line = flags(tiny_data, out, "--max-steps", 1_000_000, "--save-every", 0, "--eval-every", 0)
        command = [sys.executable, ROOT / "nanogpt_lib/train.py", *line]
        runs[number] = subprocess.Popen(command, **how)
    try:
        for number, run in runs.items():
            log = outs[number] / "log.jsonl"
            while not log.exists() or log.read_text().count("train_loss") < 3:
                assert run.poll() is None
                time.sleep(0.05)
            run.send_signal(number)
        said = {number: run.communicate(timeout=120)[0] for number, run in runs.items()}
    finally:
        for run in runs.values():
            run.kill()
    for number, run in runs.items():
        assert run.returncode == 128 + number
        last = read_log(outs[number] / "log.jsonl")[-1]["step"]
        assert f"stopped after step {last};" in said[number]
        assert newest_checkpoint(outs[number])[1]["step"] == last >= 3


@posix
@pytest.mark.parametrize("name", ["SIGUSR1", "SIGHUP"])
def test_a_signal_to_one_rank_or_to_torchrun_alone_ends_all_after_the_same_step(
    name, tiny_data, tmp_path
):
    number = getattr(signal, name)
    run = torture.Ordeal(tiny_data, tmp_path / "run", 2, np.random.default_rng(0), torture.Count())
    run.start("--max-steps", "100000", "--save-every", "0", restarts=0)
    try:
        assert run.wait_until(lambda: run.logged() >= 3)
        workers = run.workers()
        # SIGUSR1 would kill torchrun itself; SIGHUP it passes on
        os.kill(workers[1] if number == signal.SIGUSR1 else run.process.pid, number)
        assert run.process.wait(timeout=100) != 0
    finally:
        run.process.kill()
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert newest_checkpoint(run.out)[1]["step"] == run.logged() >= 3
    assert run.said().count("stopped after step") == 1


@posix
def test_a_signal_passed_on_twice_is_one_request_and_a_later_one_leaves_at_once(monkeypatch):
    clock, left = [100.0], []
    monkeypatch.setattr(guard.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(guard.os, "_exit", left.append)
    with guard.Stopper(passed_on=5) as stopper:
        for later, number in (
            (0, signal.SIGUSR1),  # a warning, and later
            (60, signal.SIGTERM),  # the scheduler is serious; torchrun passes it on
            (4, signal.SIGTERM),
            (60, signal.SIGUSR1),  # a warning is no repetition
        ):
            clock[0] += later
            os.kill(os.getpid(), number)
        assert stopper.signal == signal.SIGUSR1 and not left
        os.kill(os.getpid(), signal.SIGINT)
        assert left == [130]
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


@posix
def test_with_nohup_a_lost_connection_is_no_reason_to_end():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with guard.Stopper() as stopper:
            os.kill(os.getpid(), signal.SIGHUP)
        assert stopper.signal == 0 and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@posix
def test_one_rank_that_fails_ends_all_with_its_message_and_a_restart_goes_on(tiny_data, tmp_path):
    script, out = tmp_path / "failing.py", tmp_path / "run"
    script.write_text(
        "import os, sys\n"
        "from nanogpt_lib import train\n"
        "from nanogpt_lib.support.errors import UserError\n"
        "from nanogpt_lib.support.cli import run_program\n"
        "gradients = train.gradients\n"
        "first = os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'\n"
        "def fail(run):\n"
        "    if first and run.step == 3 and run.world.rank == 1:\n"
        "        raise UserError('rank 1 has had enough')\n"
        "    return gradients(run)\n"
        "train.gradients = fail\n"
        "run_program('train.py', train.main)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["--max-restarts=1", str(script), *flags(tiny_data, out, "--auto-resume")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert "failing.py: rank 1 has had enough\n" in done.stderr
    assert "failing.py: rank 0: another process has ended" in done.stderr
    assert done.returncode == 0 and "step_000002 at step 2" in done.stdout
    steps = [r["step"] for r in read_log(out / "log.jsonl") if "train_loss" in r]
    assert steps == [1, 2, 3, 4, 5, 6]


# --- disks and directories ----------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts (or remounts) a file system with the given options."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        line = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if not shutil.which("mount") or subprocess.run(line, capture_output=True).returncode:
            pytest.skip("no right to mount")
        return place

    yield mount
    subprocess.run(["umount", "-l", str(place)], capture_output=True)


@posix
def test_on_a_full_disk_the_run_ends_in_one_line_and_goes_on_with_more_room(
    tiny_data, tmp_path, small_disk
):
    whole, full = tmp_path / "whole", small_disk("size=420k") / "run"
    assert train.main(flags(tiny_data, whole)) == 0
    with pytest.raises(UserError, match="cannot be saved .*No space left.*older ones are intact"):
        train.main(flags(tiny_data, full))
    left = sorted(p.name for p in (full / "checkpoints").iterdir())
    assert left == [p.name for p in checkpoints(full)] and newest_checkpoint(full)[0].name in left
    small_disk("remount,size=4m")
    assert train.main(["--resume", "--out", str(full)]) == 0
    same_end(whole, full)
    gc.collect()  # the log of the run that failed is open until then
    small_disk("remount,ro")
    with pytest.raises(UserError, match="cannot be written .Read-only file system"):
        train.main(["--resume", "--out", str(full)])
    with pytest.raises(UserError, match="cannot be created .Read-only file system"):
        train.main(flags(tiny_data, full.parent / "other"))


@posix
def test_a_file_that_may_not_grow_is_one_line_too(tiny_data, tmp_path):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for limit, message in (
            (100_000, "cannot be saved .*File too large"),
            (400, "/400/config.json: File too large"),
        ):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            # what pytest captures is a file, too
            with contextlib.redirect_stdout(io.StringIO()), pytest.raises(UserError, match=message):
                train.main(flags(tiny_data, tmp_path / str(limit), "--log-every", "9"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_in_place_of_the_run_directory_is_named(tiny_data, tmp_path):
    (tmp_path / "file").write_text("")
    for out in ("file", "file/run"):
        with pytest.raises(UserError, match="cannot be created"):
            train.main(flags(tiny_data, tmp_path / out))


def test_a_run_directory_that_vanishes_ends_the_run(tiny_data, tmp_path, monkeypatch):
    report = train.report

    def vanish(run, *args, **kwargs):
        report(run, *args, **kwargs)
        if run.step == 3:
            shutil.rmtree(run.config.out)

    monkeypatch.setattr(train, "report", vanish)
    with pytest.raises(UserError, match="the run directory was removed"):
        train.main(flags(tiny_data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_damaged_shard_is_found_before_the_first_step(tiny_data, tmp_path):
    data = shutil.copytree(tiny_data, tmp_path / "data")
    shard = data / "train_000000.npy"
    content = bytearray(shard.read_bytes())
    content[5000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match="train_000000.npy: damaged"):
        train.main(flags(data, tmp_path / "run"))
    assert not (tmp_path / "run/log.jsonl").exists()
    assert train.main(flags(data, tmp_path / "run", "--no-verify-data", "--max-steps", "1")) == 0


# --- one run per directory ----------------------------------------------------------------------


def test_a_second_run_on_one_directory_is_refused_until_the_first_is_dead(tiny_run, tmp_path):
    out = shutil.copytree(tiny_run, tmp_path / "run")
    code = f"""
import time; from nanogpt_lib.support.guard import claim
lock = claim({str(out)!r}, resume=True)
print("locked", flush=True); time.sleep(60)"""
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    assert first.stdout.readline().strip() == b"locked"
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    with pytest.raises(
        UserError, match=f"in use by process {first.pid} on .*; stop that one first"
    ):
        train.main(["--resume", "--out", str(out)])
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
    first.kill()
    first.wait()
    assert train.main(["--resume", "--out", str(out)]) == 0
    claim(out, resume=True).close()  # free again


def test_one_command_line_both_starts_and_continues(tiny_data, tmp_path, capsys, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert train.main(flags(tiny_data, whole)) == 0
    command = flags(tiny_data, out, "--auto-resume")
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(train, "report", lambda run, *a, **k: 1 / (4 - run.step))
        train.main(command)
    assert "resumed" not in capsys.readouterr().out
    assert train.main(command) == 0
    assert "step_000002 at step 2" in capsys.readouterr().out
    assert weights(checkpoints(out)[-1]) == weights(checkpoints(whole)[-1])


def test_killed_before_its_first_checkpoint_a_run_begins_again(tiny_data, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert train.main(flags(tiny_data, whole)) == 0
    shutil.copytree(whole, out)
    shutil.rmtree(out / "checkpoints")
    assert train.main(["--resume", "--out", str(out)]) == 0
    same_end(whole, out)


def test_a_damaged_config_is_read_from_a_checkpoint_instead(tiny_run, tmp_path):
    out = shutil.copytree(tiny_run, tmp_path / "run")
    expected = as_dict(parse_config(["--resume", "--out", str(out)]))
    text = (out / "config.json").read_text()
    (out / "config.json").write_text(text.replace('"n_layer": 1', '"n_layer": 2'))
    assert as_dict(parse_config(["--resume", "--out", str(out)])) == expected
    for folder in checkpoints(out):
        (folder / "state.json").unlink()
    with pytest.raises(UserError, match="config.json: damaged"):
        parse_config(["--resume", "--out", str(out)])


def test_the_best_and_the_newest_checkpoint_are_kept(tiny_data, tmp_path):
    rising = ("--learning-rate", "0.5", "--save-every", "1", "--eval-every", "1")
    assert train.main(flags(tiny_data, tmp_path, *rising, "--keep-checkpoints", "1")) == 0
    losses = {r["step"]: r["val_loss"] for r in read_log(tmp_path / "log.jsonl") if "val_loss" in r}
    best = min(range(1, 6), key=losses.get)
    assert [p.name for p in checkpoints(tmp_path)] == [f"step_{best:06d}", "step_000006"]


def test_a_run_that_went_back_past_a_damaged_checkpoint_keeps_what_it_saves(
    tiny_data, tmp_path, monkeypatch, capsys
):
    assert train.main(flags(tiny_data, tmp_path)) == 0  # saves 2, 4 and 6
    whole = weights(checkpoints(tmp_path)[-1])
    damaged = checkpoints(tmp_path)[-1] / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    report = train.report

    def end_at_5(run, *args, **kwargs):
        report(run, *args, **kwargs)
        if run.step == 4:
            os.kill(os.getpid(), signal.SIGINT)  # noted during step 5

    with monkeypatch.context() as patch:
        patch.setattr(train, "report", end_at_5)
        again = ["--resume", "--keep-checkpoints", "1", "--out", str(tmp_path)]
        shutil.rmtree(tmp_path / "checkpoints/step_000004")
        assert train.main(again) == 130
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step_000005"]
    assert (
        "step_000006: written before the run resumed from an older checkpoint"
        in capsys.readouterr().err
    )
    assert train.main(again) == 0
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step_000006"]
    assert weights(checkpoints(tmp_path)[-1]) == whole


# --- a loss that is not a number ----------------------------------------------------------------


def bad_at(monkeypatch, *steps, loss=math.nan, norm=1.0):
    """Replace the loss and norm of some steps."""
    gradients = train.gradients

    def changed(run):
        found = gradients(run)
        return (loss, norm, found[2]) if run.step + 1 in steps else found

    monkeypatch.setattr(train, "gradients", changed)


@pytest.mark.parametrize("loss, norm", [(math.nan, 1.0), (math.inf, 1.0), (2.0, math.nan)])
def test_a_bad_step_ends_the_run_before_it_does_harm(tiny_data, tmp_path, monkeypatch, loss, norm):
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert train.main(flags(tiny_data, whole)) == 0
    with monkeypatch.context() as patch:
        bad_at(patch, 4, loss=loss, norm=norm)
        with pytest.raises(UserError) as error:
            train.main(flags(tiny_data, out))
    said = str(error.value)
    assert said.startswith(f"step 4: loss {loss} on rank") and f"gradient norm {norm}" in said
    assert "epoch 0, from window 24 on" in said  # three steps of 8 windows
    assert newest_checkpoint(out)[1]["step"] == 3  # saved as it was before the bad step
    assert train.main(["--resume", "--out", str(out)]) == 0
    same_end(whole, out)


def test_so_many_bad_steps_in_a_row_may_be_left_out(tiny_data, tmp_path, monkeypatch):
    bad_at(monkeypatch, 2, 4, 5)
    with pytest.raises(UserError, match="step 5: loss nan"):
        train.main(flags(tiny_data, tmp_path / "one", "--skip-bad-steps", "1"))
    assert train.main(flags(tiny_data, tmp_path / "two", "--skip-bad-steps", "2")) == 0
    records = [r for r in read_log(tmp_path / "two/log.jsonl") if "train_loss" in r]
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 6]
    assert [r["train_loss"] is None for r in records] == [False, True, False, True, True, False]
    for line in (tmp_path / "two/log.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_float16_looking_for_its_scale_is_no_bad_step(tiny_data, tmp_path, monkeypatch):
    # the program refuses float16 on a CPU, where it is slow; here the arithmetic is what counts
    monkeypatch.setattr(run_module, "choose_dtype", lambda device, wanted: torch.float16)
    bad_at(monkeypatch, 1, loss=3.0, norm=math.inf)
    assert train.main(flags(tiny_data, tmp_path / "run")) == 0
    monkeypatch.setattr(train.torch.amp.GradScaler, "get_scale", lambda scaler: 0.5)
    with pytest.raises(UserError, match="gradient norm inf"):
        train.main(flags(tiny_data, tmp_path / "lost"))


def test_a_run_that_diverges_says_so(tiny_data, tmp_path):
    away = ["--learning-rate", "1e12", "--warmup-steps", "0", "--grad-clip", "0"]
    with pytest.raises(
        UserError, match=r"^step \d+: (loss (nan|inf) on rank 0|the validation loss is)"
    ):
        train.main(flags(tiny_data, tmp_path / "run", *away, "--max-steps", "50"))
    assert len(read_log(tmp_path / "run/log.jsonl")) < 50  # and at once


# --- damaged files and bad command lines --------------------------------------------------------


def test_a_pickle_given_as_a_checkpoint_is_refused_and_not_run(tmp_path):
    import pickle

    bomb = pickle.dumps(fuzz.Bomb(tmp_path / "exploded"))
    (tmp_path / "ckpt.pt").write_bytes(bomb)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/model.safetensors").write_bytes(bomb)
    (tmp_path / "hf/pytorch_model.bin").write_bytes(bomb)
    (tmp_path / "hf/config.json").write_text("{}")
    for source in ("ckpt.pt", "hf"):
        with pytest.raises(UserError):
            load_model(str(tmp_path / source))
    assert not (tmp_path / "exploded").exists()


def test_damaged_files_are_refused_or_read_right(tmp_path):
    counts = fuzz.fuzz_files(tmp_path, 300, seed=11)
    assert sum(counts.values()) == 300 and len({name for name, _ in counts}) == 8


def test_command_lines_work_or_are_refused_in_one_line(tmp_path):
    counts = fuzz.fuzz_lines(tmp_path, 100, seed=11)
    assert sum(counts.values()) == 100 and counts["train.py", "works"]
