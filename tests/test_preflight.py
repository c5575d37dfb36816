"""What train.py --preflight promises, on healthy machines and on deliberately sick ones."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import ROOT, TINY, program, write_tiny_data
from nanogpt_lib import run, train
from nanogpt_lib.choices import MODELS, OPTIMIZERS, model_config, state_bytes
from nanogpt_lib.config import TrainConfig
from nanogpt_lib.forecast import (
    Forecast,
    checkpoint_bytes,
    checkpoints_at_once,
    times_due,
    training_seconds,
)
from nanogpt_lib.preflight import flight, machine, processes
from nanogpt_lib.recipes.text import write_splits
from nanogpt_lib.run import Run
from nanogpt_lib.support.checks import Checks, Note, same_ranks
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.processes import World
from nanogpt_lib.tokenizer import GPT2Tokenizer

CHECKS = "processes settings data same tokens model memory disk links compile ranks".split()
AFTER = ["first loss", "step", "checkpoint", "evaluation", "time"]
LINE = re.compile(r"(ok|look|STOP) +(.{12}) (.*)")


def lines_of(said: str) -> dict[str, tuple[str, str]]:
    """name → (grade, text), of a preflight's output."""
    found = [LINE.match(line) for line in said.splitlines()]
    return {line[2].strip(): (line[1], line[3]) for line in found if line}


def fly(capsys, data: Path, *flags, out: Path | None = None) -> tuple[int, dict, str]:
    """A preflight in this process: status, lines and output."""
    out = out or data.parent / "run"
    status = train.main([*TINY, "--data", str(data), "--out", str(out), "--preflight", *flags])
    said = capsys.readouterr().out
    return status, lines_of(said), said


@pytest.fixture
def data(tmp_path) -> Path:
    """A dataset of its own, that may be damaged."""
    return write_tiny_data(tmp_path / "tiny")


def stopped(lines: dict) -> dict[str, str]:
    """The checks that failed, with their texts."""
    return {name: text for name, (grade, text) in lines.items() if grade == "STOP"}


# --- healthy ------------------------------------------------------------------------------------


def test_a_healthy_run_is_ready_and_nothing_is_written(data, capsys):
    before = {path: path.stat().st_mtime_ns for path in data.parent.rglob("*")}
    status, lines, said = fly(capsys, data, "--price", "2")
    assert status == 0 and stopped(lines) == {}
    assert [*lines] == [*CHECKS, "updates", *AFTER]
    assert "ready: the same command without --preflight" in said and "\033" not in said
    assert {path: path.stat().st_mtime_ns for path in data.parent.rglob("*")} == before
    assert re.search(r"6 steps × .* \+ validation .* \+ checkpoints .*; at 2 an hour: 0\.00", said)


def test_a_run_to_resume_is_left_as_it_was(data, capsys):
    out = data.parent / "run"
    train.main([*TINY, "--data", str(data), "--out", str(out), "--max-steps", "3"])
    capsys.readouterr()
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in out.rglob("*")}
    status, lines, _ = fly(capsys, data, "--resume")
    assert status == 0 and lines["time"][1].startswith("3 steps ×")  # of 6
    assert "guessing would be" in lines["first loss"][1]
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in out.rglob("*")} == before
    status, lines, said = fly(capsys, data)
    assert status == 1 and "add --resume to continue it" in stopped(lines)["settings"]
    assert "do not start" in said and lines["time"][0] == "ok"
    status, lines, _ = fly(capsys, data, "--resume", "--max-steps", "3")
    assert status == 1 and "has its 3 steps" in stopped(lines)["compile"]


def test_minutes_set_the_steps_of_the_forecast(data, capsys):
    at = TINY.index("--max-steps")  # the other way to set them
    flags = [*TINY[:at], *TINY[at + 2 :], "--data", str(data), "--preflight"]
    flags += ["--warmup-steps", "10", "--minutes", "3", "--step-seconds", "0.5"]
    assert train.main([*flags, "--out", str(data.parent / "run")]) == 0
    assert lines_of(capsys.readouterr().out)["time"][1].startswith("360 steps ×")


@pytest.fixture(scope="module")
def fox(tmp_path_factory) -> list[str]:
    """Flags for a run on GPT-2's tokens with HellaSwag."""
    folder, tokenizer = tmp_path_factory.mktemp("fox"), GPT2Tokenizer()
    ids = np.array(tokenizer.encode("The quick brown fox jumps over the lazy dog, twice. " * 300))
    meta = {"name": "fox", "source": "test", "tokenizer": tokenizer.describe(), "vocab_size": 50257}
    write_splits(folder / "fox", meta, ids[:-400], ids[-400:])
    items = (ROOT / "data/hellaswag_own.jsonl").read_text(encoding="utf-8").splitlines()[:5]
    (folder / "items.jsonl").write_text("\n".join(items), encoding="utf-8")
    flags = f"--data {folder}/fox --hellaswag-data {folder}/items.jsonl --hellaswag-every 2"
    return [*TINY, *flags.split(), "--sample-prompt", "Hello", "--out", str(folder / "run")]


def test_four_sharded_processes_are_checked_by_the_plain_command(fox):
    done = program(
        "train.py", *fox, "--parallel", "fsdp", "--preflight", "--batch-size", 2, ranks=4
    )
    lines = lines_of(done.stdout)
    assert done.returncode == 0 and stopped(lines) == {}, done.stdout + done.stderr
    assert [*lines] == [*CHECKS, "4 against 1", *AFTER]
    assert "4 processes on 1 machine, gloo" in lines["processes"][1]
    assert "5 HellaSwag items" in lines["model"][1] and "HellaSwag" in lines["evaluation"][1]
    assert "HellaSwag" in lines["time"][1] and "busbw" in lines["links"][1]
    assert [path.name for path in Path(fox[-1]).parent.iterdir() if "preflight" in path.name] == []


# --- one process, sick --------------------------------------------------------------------------


def test_a_full_disk(data, capsys, monkeypatch):
    free = shutil.disk_usage(data)._replace(free=200_000)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda place: free)
    status, lines, _ = fly(capsys, data, "--keep-checkpoints", "2")
    assert status == 1 and [*stopped(lines)] == ["disk"]
    assert re.search(r"for 3 checkpoint\(s\) of 1\d\d kB .* 200 kB free in", lines["disk"][1])


def test_a_disk_that_fills_up_while_saving(data, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nanogpt_lib.support.checkpoint_files.save_rows", full)
    status, lines, _ = fly(capsys, data)
    assert status == 1 and "cannot be saved" in stopped(lines)["checkpoint"]
    assert [path.name for path in data.parent.iterdir()] == ["tiny"]


def test_a_cut_and_a_damaged_shard(data, capsys):
    shard = data / "train_000000.npy"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    status, lines, _ = fly(capsys, data)
    assert status == 1 and "train_000000.npy: truncated" in stopped(lines)["data"]
    shard.write_bytes(whole[:-100] + whole[-98:] + whole[-100:-98])
    status, lines, _ = fly(capsys, data)
    assert status == 1 and "train_000000.npy: damaged (SHA-256" in stopped(lines)["data"]


def test_only_a_sample_is_verified_if_time_is_short(data, capsys, monkeypatch):
    monkeypatch.setattr(machine, "VERIFY_SECONDS", -1)
    status, lines, _ = fly(capsys, data)
    assert status == 0 and "0% of 2 shards whole by SHA-256, the others by size" in lines["data"][1]


def test_missing_data_say_what_they_would_take(tmp_path, capsys):
    status, lines, _ = fly(capsys, tmp_path / "nowhere", "--max-steps", "1000")
    assert status == 1 and re.search(
        r"no such data folder.*256K tokens of this run take 512 kB, .* free in",
        stopped(lines)["data"],
    )


def test_text_that_is_repeated_too_often(data, capsys):
    tokens = json.loads((data / "meta.json").read_text())["splits"]["train"][0]["tokens"]
    status, lines, _ = fly(capsys, data, "--max-steps", str(6 * tokens // 256))
    assert (status, lines["tokens"][0]) == (0, "look")
    assert f"or --max-steps {4 * tokens // 256}" in lines["tokens"][1]
    status, lines, _ = fly(capsys, data, "--max-steps", str(30 * tokens // 256))
    assert status == 1 and "learned by heart" in stopped(lines)["tokens"]
    assert fly(capsys, data, "--max-steps", str(30 * tokens // 256), "--dropout", "0.1")[0] == 0


def test_too_little_memory_by_formula_names_the_rows_that_fit(data, capsys, monkeypatch):
    monkeypatch.setattr(flight, "memory_bytes", lambda device: 450_000)
    status, lines, _ = fly(capsys, data)
    assert status == 1 and [*stopped(lines)] == ["memory"]
    rows = int(re.search(r"--batch-size (\d) fits", lines["memory"][1])[1])
    status, lines, _ = fly(capsys, data, "--batch-size", str(rows))
    assert status == 0 and rows < 4


def test_too_little_memory_in_a_real_step_names_the_rows_that_were_tried(data, capsys, monkeypatch):
    tried, real = [], processes.micro_seconds

    def micro(this, optimizer_bytes):
        tried.append(this.rows)
        if this.rows > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return real(this, optimizer_bytes)

    monkeypatch.setattr(processes, "micro_seconds", micro)
    status, lines, _ = fly(capsys, data)
    assert status == 1 and tried == [4, 2, 1]
    assert "out of memory with 4 rows; --batch-size 1 fits" in stopped(lines)["compile"]


def test_a_compiler_that_fails(data, capsys, monkeypatch):
    def broken(model, mode=None):
        raise RuntimeError("no C++ compiler\nmore")

    monkeypatch.setattr(torch, "compile", broken)
    status, lines, _ = fly(capsys, data, "--compile", "on")
    assert status == 1 and "RuntimeError: no C++ compiler): the run" in stopped(lines)["compile"]
    assert "--compile off" in lines["compile"][1] and "step" not in lines
    assert fly(capsys, data, "--compile", "off")[0] == 0


def test_a_first_loss_that_is_not_that_of_a_fresh_model(data, capsys, monkeypatch):
    real = run.build_model

    def ten_times(*args):
        model, *rest = real(*args)
        with torch.no_grad():
            model.lm_head.weight *= 20
        return model, *rest

    monkeypatch.setattr(run, "build_model", ten_times)
    status, lines, _ = fly(capsys, data)
    assert status == 1 and "more than 0.1 apart" in stopped(lines)["first loss"]


def test_a_checkpoint_that_does_not_restore_the_run(data, capsys, monkeypatch):
    monkeypatch.setattr(run, "load_optimizer", lambda *args: None)
    status, lines, _ = fly(capsys, data)
    assert status == 1 and "parts differ when restored, e.g." in stopped(lines)["checkpoint"]


@pytest.mark.parametrize("flags, words", [
    ("--optimizer muon --parallel fsdp", "needs whole matrices"),
    ("--eval-only --init-from gpt2", "drop one"),
    ("--total-batch-size 100", "cannot be divided into rows"),
])  # fmt: skip
def test_contradictory_flags_are_one_line(data, flags, words):
    with pytest.raises(UserError, match=words):
        train.main([*TINY, "--data", str(data), "--preflight", *flags.split()])
    with pytest.raises(UserError, match="only with --preflight"):
        train.main([*TINY, "--data", str(data), "--price", "2"])


def test_what_keeps_a_run_from_starting_later_is_found(data, fox, capsys, monkeypatch):
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    status, lines, _ = fly(capsys, data, "--logger", "wandb")
    assert status == 1 and "--logger wandb: not installed" in stopped(lines)["settings"]
    flags = ["--hellaswag-data", str(data.parent / "none.jsonl"), "--preflight"]
    assert train.main([*fox, *flags]) == 1
    assert "none.jsonl" in stopped(lines_of(capsys.readouterr().out))["model"]


def test_a_gpu_that_pytorch_cannot_use(data, capsys, monkeypatch):
    monkeypatch.setattr(machine, "driver_version", lambda: "580.159.04")
    monkeypatch.setattr(train, "detect_device", lambda wanted: torch.device("cpu"))
    status, lines, _ = fly(capsys, data, "--device", "auto")
    assert status == 1 and "there is a GPU (driver 580.159.04)" in stopped(lines)["processes"]


# --- several processes, one of them sick --------------------------------------------------------

SICK = {  # name → the check that must stop, and a word of its line
    "other code": ("same", "rank 1 has another nanogpt_lib: copy the same commit"),
    "other data": ("same", "rank 1 has another dataset in --data"),
    "other flags": ("same", "rank 1 has another set of flags"),
    "cut shard": ("data", "rank 1: "),
    "full disk": ("disk", "rank 1: "),
    "little memory": ("memory", "rank 1: "),
    "small card": ("compile", "rank 1: out of memory with 4 rows; --batch-size 2 fits"),
    "slow": ("ranks", "on rank 1, the slowest"),
    "other batches": ("2 against 1", "on rank 0, 1: a card or link"),
    "not averaged": ("2 against 1", "on rank 0, 1: a card or link"),
    "bit flip": ("2 against 1", "wte.weight are no longer the same"),
}
WELL = ("healthy", "sharded", "resumed")


@pytest.fixture(scope="module")
def sick(tiny_data, tmp_path_factory) -> dict[str, str]:
    """What two processes print in each state of health, in one launch: nobody hangs."""
    folder = tmp_path_factory.mktemp("sick")
    shutil.copytree(ROOT / "nanogpt_lib", folder / "copy/nanogpt_lib")
    with open(folder / "copy/nanogpt_lib/model.py", "a", encoding="utf-8") as file:
        file.write("# an edit on one node\n")
    shutil.copytree(tiny_data, folder / "cut")
    shard = folder / "cut/val_000000.npy"
    shard.write_bytes(shard.read_bytes()[:-100])
    tokens = np.load(tiny_data / "train_000000.npy")
    meta = json.loads((tiny_data / "meta.json").read_text(encoding="utf-8"))
    meta = {name: meta[name] for name in ("name", "source", "tokenizer", "vocab_size")}
    write_splits(folder / "other", meta, tokens[::-1], np.load(tiny_data / "val_000000.npy"))
    flags = [*TINY, "--data", str(tiny_data)]
    train.main([*flags, "--out", str(folder / "run"), "--max-steps", "3"])
    flags += ["--out", str(folder / "new")]
    names = ",".join([*WELL, *SICK])
    done = program(ROOT / "tests/sick.py", folder, names, *flags, ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not [path for path in folder.iterdir() if "preflight" in path.name]
    parts = re.split(r"(?m)^== (.+)$", done.stdout)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", WELL)
def test_two_healthy_processes_are_ready(sick, name):
    lines = lines_of(sick[name])
    assert stopped(lines) == {} and [*lines] == [*CHECKS, "2 against 1", *AFTER], sick[name]
    for rank in (0, 1):
        assert f"{name}: status 0 on rank {rank}" in sick[name]


@pytest.mark.parametrize("name", SICK)
def test_one_sick_process_stops_all_and_is_named(sick, name):
    check, words = SICK[name]
    found = stopped(lines_of(sick[name]))
    assert [*found] == [check] and words in found[check], sick[name]
    assert f"yet: {check}" in sick[name] and "ready" not in sick[name]
    for rank in (0, 1):
        assert f"{name}: status 1 on rank {rank}" in sick[name]


def test_a_process_that_fails_in_a_collective_ends_all_at_once_and_says_why(tiny_data, tmp_path):
    flags = [*TINY, "--data", tiny_data, "--out", tmp_path / "run"]
    done = program(ROOT / "tests/sick.py", tmp_path, "dies", *flags, ranks=2)
    assert done.returncode == 1 and "dies: status" not in done.stdout
    found = stopped(lines_of(done.stdout))
    assert found == {"evaluation": "rank 1: RuntimeError: Xid 79: GPU has fallen off the bus"}
    gone(tmp_path)


def gone(folder: Path) -> None:
    """Wait until the temporary folder has been removed."""
    deadline = time.monotonic() + 60
    while left := [*folder.glob(".preflight-*")]:
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL on Windows")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_preflight_leaves_nothing(tiny_data, tmp_path, number):
    flags = [*TINY, "--data", tiny_data, "--out", tmp_path / "run"]
    command = [sys.executable, ROOT / "tests/sick.py", tmp_path, "stuck", *flags]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*map(str, command)], env=env, stdout=subprocess.DEVNULL, stderr=-3,
        # a shell lets what it starts in the background ignore Ctrl-C, and so would this process
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while not [*tmp_path.glob(".preflight-*/checkpoints/step_*/state.json")]:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(timeout=60) != 0
    gone(tmp_path)
    assert not (tmp_path / "run").exists()


# --- the lines, without processes ---------------------------------------------------------------


@given(st.integers(0, 20), st.integers(0, 30), st.integers(0, 30))
def test_how_often_something_is_due_is_what_the_loop_does(every, first, more):
    config = TrainConfig(max_steps=first + more)
    steps = [
        step
        for step in range(first, first + more + 1)
        if Run.due(SimpleNamespace(finished=step == config.max_steps, step=step), every)
    ]
    assert times_due(every, first, first + more) == len(steps)


def test_a_forecast_is_the_sum_of_its_parts():
    config = TrainConfig(max_steps=100, total_batch_size=1000)
    assert training_seconds(config, 500, step=50) == 100
    forecast = Forecast(config, 3.0, 50, {"validation": 1200.0})
    assert (forecast.updates, forecast.seconds) == (150, 1350)
    assert forecast.describe() == "50 steps × 3 s = 2.5 min; + validation 20 min = 22.5 min"


@pytest.mark.parametrize("keep, every, most", [(2, 10, 4), (2, 50, 2), (0, 10, 10), (0, 0, 1)])
def test_checkpoints_at_once(keep, every, most):
    config = TrainConfig(max_steps=100, save_every=every, keep_checkpoints=keep)
    assert checkpoints_at_once(config) == most


def test_a_checkpoint_is_weights_and_optimizer():
    config = TrainConfig()
    with torch.device("meta"):
        model = MODELS["gpt2"](model_config(config, 50257))
    own = state_bytes(OPTIMIZERS["adamw"](model, config, torch.bfloat16))
    assert checkpoint_bytes(model, own) == 12 * sum(p.numel() for p in model.parameters())


CARD = "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    "name, topology, bandwidth",
    [
        (CARD, "GPU0 X NV18", 360),
        ("NVIDIA A100-SXM4-80GB", "GPU0 X NV12", 240),
        (CARD, "GPU0 X PHB", None),
        ("NVIDIA H100 PCIe", "GPU0 X NV6", None),
        ("NVIDIA H100 NVL", "GPU0 X NV6", None),
        ("NVIDIA L4", "GPU0 X PHB", None),
        (CARD, "", None),
    ],
)
def test_what_the_links_of_a_card_should_give(monkeypatch, name, topology, bandwidth):
    monkeypatch.setattr(machine, "name_of", lambda device: name)
    monkeypatch.setattr(machine, "topology", lambda: topology)
    assert machine.nvlink_bandwidth(torch.device("cuda", 0)) == bandwidth
    assert machine.nvlink_bandwidth(torch.device("cpu")) is None


def test_slow_links_are_named(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setattr(machine, "nvlink_bandwidth", lambda device: 360.0)
    world, device = World(0, 0, 8), torch.device("cpu")
    good = machine.links_line(500_000_000, 0.0025, world, device)
    assert "500 MB in 2.5 ms: busbw 350 GB/s, NVLink of this card gives about 360" in good
    with pytest.raises(UserError, match="busbw 17.5 GB/s.*nvidia-smi topo"):
        machine.links_line(500_000_000, 0.05, world, device)
    assert "busbw" in machine.links_line(5_000_000, 0.05, world, device)  # latency only


def test_a_slow_rank_is_a_note_before_it_is_a_reason_to_stop():
    assert not isinstance(processes.ranks_line([1.0, 1.1, 1.0], 1.5), Note)
    assert isinstance(processes.ranks_line([1.0, 1.2, 1.0], 1.5), Note)
    with pytest.raises(UserError, match="rank 1, the slowest: 2.00 times"):
        processes.ranks_line([1.0, 2.0, 1.0, 1.0], 1.5)


def test_differences_are_judged_by_dtype():
    one = {"alone": [(3.0, 1.0)] * 5, "together": [(3.001, 1.001)] * 5, "state": {"w": "a"}}
    assert processes.difference_line(torch.bfloat16, 0, [one, one])
    with pytest.raises(UserError, match="on rank 0, 1:"):
        processes.difference_line(torch.float32, 0, [one, one])
    nan = {**one, "together": [(math.nan, 1.0)] * 5}
    with pytest.raises(UserError, match="on rank 1:"):
        processes.difference_line(torch.bfloat16, 0, [one, nan])
    with pytest.raises(UserError, match="the ranks' w are no longer the same"):
        processes.difference_line(torch.bfloat16, 0, [one, {**one, "state": {"w": "b"}}])
    assert processes.relative(math.inf, math.nan) == 0  # GradScaler skips both


def test_ranks_are_named_unless_all_say_the_same():
    assert [*same_ranks({0: "a", 1: "a"}, 2)] == ["a"]
    assert [*same_ranks({1: "a", 3: "a", 2: "b"}, 4)] == ["rank 1, 3: a", "rank 2: b"]


def test_colours_only_on_a_terminal(monkeypatch, capsys):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    Checks(World())("name", lambda: "all is well")
    assert "\033[32mok   \033[0m name         all is well" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    Checks(World())("name", lambda: Note("hm"))
    assert "look  name         hm\n" in capsys.readouterr().out
