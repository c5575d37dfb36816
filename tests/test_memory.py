"""What support/memory.py promises."""

import ctypes
import os
import platform
import re
import subprocess
import sys
import types

import pytest
import torch
from readme import README

from conftest import ROOT, TINY
from nanogpt_course.measuring import peak_bytes
from nanogpt_lib import run as run_module
from nanogpt_lib import train
from nanogpt_lib.choices import MODELS, OPTIMIZERS, model_config, state_bytes
from nanogpt_lib.config import TrainConfig
from nanogpt_lib.device import autocast, compile_model
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.presets import PRESETS
from nanogpt_lib.support import memory as module
from nanogpt_lib.support.memory import keep_freed_memory
from nanogpt_lib.support.processor import cpu_multiplies_bfloat16

CPU = torch.device("cpu")
SHAPE = dict(block_size=16, vocab_size=50, n_layer=2, n_head=2, n_embd=16)


def tiny(**changes):
    torch.manual_seed(1)
    return GPT(GPTConfig(**{**SHAPE, **changes}))


def batch(rows=3):
    tokens = torch.randint(0, 50, (rows, 17), generator=torch.Generator().manual_seed(2))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def saved_bytes(model, x, y, dtype) -> int:
    """The exact bytes PyTorch saves for the backward pass, without the model's parameters."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t), autocast(CPU, dtype):
        loss = model(x, y)[1]
    assert loss.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "rows, shape, name",
    [
        (2, dict(block_size=128, n_layer=2, n_embd=64, vocab_size=1000), "adamw"),
        (3, dict(block_size=64, n_layer=4, n_embd=128, vocab_size=5025, vocab_multiple=64), "muon"),
        (
            1,
            dict(block_size=256, n_layer=3, n_embd=96, vocab_size=9999, vocab_multiple=64),
            "adamw",
        ),
        (8, dict(block_size=64, n_layer=4, n_embd=128, vocab_size=96), "muon"),
    ],
)
def test_the_memory_formula_meets_what_a_step_takes(rows, shape, dtype, name):
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_head=4, **shape))
    tokens = torch.randint(shape["vocab_size"], (rows, shape["block_size"] + 1))
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    optimizer = OPTIMIZERS[name](model, TrainConfig(), dtype)

    def step():
        for _ in range(2):  # the second micro-batch finds the gradients of the first
            with autocast(CPU, dtype):
                _, loss = model(x, y)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    step()  # makes the optimizer's averages
    weights = sum(p.numel() for p in model.parameters())
    own = sum(
        value.nbytes
        for part in getattr(optimizer, "parts", [optimizer])
        for entry in part.state.values()
        for key, value in entry.items()
        if key != "step"
    )
    assert state_bytes(optimizer) == own <= 8 * weights
    measured = 4 * weights + own + peak_bytes(step)  # weights and averages were there before
    said = module.training_bytes(model, rows, dtype, state_bytes(optimizer))
    assert said == pytest.approx(measured, rel=0.02)
    # what a token adds, against an exact count: the difference of two and one times the rows
    once, twice = (saved_bytes(model, x.repeat(n, 1), y.repeat(n, 1), dtype) for n in (1, 2))
    growth = module.training_bytes(model, 2 * rows, dtype)
    growth -= module.training_bytes(model, rows, dtype)
    V, C, size = shape["vocab_size"], shape["n_embd"], 4 if dtype == torch.float32 else 2
    once_in_2_bytes = size == 2 and not cpu_multiplies_bfloat16()
    last_mlp = (8 if once_in_2_bytes else 16) * C
    loss = max(model.config.padded_vocab_size * size + 8 * V, last_mlp) * x.numel()
    assert growth - loss == pytest.approx(twice - once, rel=0.005)


def test_gpt2_1558m_fits_eight_cards_of_24_gb_and_two_nodes_of_them_but_no_single_one():
    config = TrainConfig(**PRESETS["gpt2-1558m"])
    with torch.device("meta"):
        model = GPT(model_config(config, 50257))
    alone, eight, sixteen = (
        module.training_bytes(model, 4, torch.bfloat16, ranks=ranks) / 1e9 for ranks in (1, 8, 16)
    )
    share = 16 * sum(p.numel() for p in model.parameters()) / 1e9  # 24.9 GB in all
    assert eight - sixteen == pytest.approx(share / 8 - share / 16)
    assert sixteen < eight < 0.9 * 24 < 24 < share < alone
    assert module.rows_that_fit(model, torch.bfloat16, 24e9, 64, ranks=8) == 4
    assert module.rows_that_fit(model, torch.bfloat16, 24e9, 64) == 0


def test_more_rows_length_or_width_need_more_and_attention_by_hand_most():
    base = module.training_bytes(tiny(), 4, torch.bfloat16)
    for more in (dict(block_size=32), dict(n_embd=32), dict(n_layer=3), dict(attention="manual")):
        assert module.training_bytes(tiny(**more), 4, torch.bfloat16) > base
    assert module.training_bytes(tiny(), 8, torch.bfloat16) > base
    assert module.training_bytes(tiny(), 4, torch.float32) > base


def test_the_rows_that_fit_divide_the_step_and_leave_a_tenth():
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab_multiple=64))
    for memory in (8e9, 16e9, 24e9, 40e9, 80e9):
        rows = module.rows_that_fit(model, torch.bfloat16, memory, 512)
        assert rows and 512 % rows == 0
        assert module.training_bytes(model, rows, torch.bfloat16) <= 0.9 * memory
        assert module.training_bytes(model, 2 * rows, torch.bfloat16) > 0.9 * memory
    assert module.rows_that_fit(model, torch.bfloat16, 1e9, 512) == 0
    assert module.rows_that_fit(model, torch.bfloat16, 40e9, 480) == 30  # not only powers of two


def test_out_of_memory_names_a_smaller_micro_batch_that_divides_the_step():
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab_multiple=64))
    attempt = lambda memory, rows: module.rows_to_try(model, torch.bfloat16, memory, 512, rows)  # noqa: E731
    assert attempt(24e9, 64) == 16  # by the formula, where half would fail again
    assert attempt(24e9, 16) == 8  # the formula was too hopeful: half
    assert attempt(None, 64) == 32  # nothing is known
    assert attempt(1e9, 64) == 1  # not even one row should fit: the least there is
    assert attempt(24e9, 1) == 0


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
    ],
)
def test_running_out_of_memory_is_recognised_on_every_device(error, monkeypatch):
    def broken(model, mode=None):
        raise error

    assert module.is_out_of_memory(error) and not module.is_out_of_memory(RuntimeError("shape"))
    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(type(error)):  # no reason to go on uncompiled, which needs more
        compile_model(tiny(), "on", CPU, *batch(), torch.float32)


@pytest.mark.skipif(sys.platform != "linux", reason="limits a process as Linux does")
def test_a_run_that_does_not_fit_says_in_one_line_which_micro_batch_to_try(tiny_data, tmp_path):
    sizes = [*TINY, "--batch-size", 65536, "--total-batch-size", 65536 * 32, "--n-embd", 256]
    args = list(map(str, [*sizes, "--data", tiny_data, "--out", tmp_path / "run"]))
    code = (
        "import resource\n"
        "from nanogpt_lib.support.cli import run_program\n"
        "from nanogpt_lib.train import main\n"
        "pages = int(open('/proc/self/statm').read().split()[0])  # what the libraries take\n"
        "limit = pages * resource.getpagesize() + 10**9\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        f"run_program('train.py', lambda: main({args!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    said = re.search(r"out of memory with 65536 rows; .* try --batch-size (\d+) \(", done.stderr)
    assert said and int(said[1]) < 65536 and 65536 % int(said[1]) == 0


def test_readmes_table_holds_what_each_preset_keeps_with_its_own_optimizer():
    table = re.findall(r"^\| `([\w-]+)` \|.*\| ([\d.]+) GB \|$", README, re.M)
    assert {name for name, _ in table} >= {"quickstart", "gpt2-124m", "gpt2-1558m"}
    for name, gigabytes in table:
        config = TrainConfig(**PRESETS[name])
        characters = {
            "quickstart": 95,
            "recorded": 95,
            "finetune-tasks": 100,
            "shakespeare-char": 65,
            "shakespeare-char-gpu": 65,
        }
        with torch.device("meta"):
            model = MODELS[config.model](model_config(config, characters.get(name, 50257)))
        optimizer = OPTIMIZERS[config.optimizer](model, config, torch.float32)
        kept = 8 * sum(p.numel() for p in model.parameters()) + state_bytes(optimizer)
        assert round(kept / 1e9, len(gigabytes.partition(".")[2])) == float(gigabytes), name


# --- how much memory there is ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "own, files, limit",
    [
        ("0::/\n", {"memory.max": "2000\n"}, 2000),  # a container with a namespace of its own
        ("0::/a/b\n", {"a/memory.max": "3000", "a/b/memory.max": "max\n"}, 3000),
        ("0::/a/b\n", {"a/memory.max": "3000", "a/b/memory.max": "1000"}, 1000),
        ("0::/a/b\n", {"a/memory.max": "500", "a/b/memory.max": "1000"}, 500),
        ("0::/host/path\n", {"memory.max": "700"}, 700),  # the path is the host's
        ("0::/../up\n", {"memory.max": "max"}, None),
        ("5:cpu:/\n4:memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": "42\n"}, 42),
        ("4:cpu,memory:/host\n", {"memory/memory.limit_in_bytes": "43"}, 43),
        ("0::/a\n", {}, None),
        ("nonsense\n\n", {"memory.max": "1"}, None),
        ("0::/\n", {"memory.max": "not a number"}, None),
    ],
)
def test_a_containers_limit_is_found_in_both_versions_and_the_smallest_counts(
    tmp_path, own, files, limit
):
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        file = tmp_path / "sys" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert module.cgroup_limit(tmp_path / "sys", tmp_path / "own") == limit


def test_without_control_groups_there_is_no_limit(tmp_path):
    assert module.cgroup_limit(tmp_path, tmp_path / "missing") is None


@pytest.mark.parametrize(
    "installed, limit, known",
    [(8, 2, 2), (8, None, 8), (None, 2, 2), (8, 2**63, 8), (None, None, None)],
)
def test_a_cpu_run_can_have_what_the_machine_has_and_the_container_allows(
    installed, limit, known, monkeypatch
):
    monkeypatch.setattr(module, "installed_memory", lambda: installed)
    monkeypatch.setattr(module, "cgroup_limit", lambda: limit)
    assert module.memory_bytes(CPU) == known


def test_a_gpu_run_can_have_what_is_free_or_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5, 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 7)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 11)
    assert module.memory_bytes(torch.device("cuda")) == 12
    assert module.memory_bytes(torch.device("mps")) == 11


def test_every_system_is_asked_in_its_way_or_the_answer_is_none(monkeypatch):
    if hasattr(os, "sysconf"):
        assert module.installed_memory() > 2**27  # this machine
    monkeypatch.setattr(os, "sysconf", lambda name: 3, raising=False)
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    assert module.installed_memory() == 9
    monkeypatch.delattr(os, "sysconf")
    assert module.installed_memory() is None

    class Kernel:
        def GlobalMemoryStatusEx(self, pointer):
            status = ctypes.cast(pointer, ctypes.POINTER(module.MemoryStatus)).contents
            assert status.length == ctypes.sizeof(status) == 64  # as Windows defines it
            status.physical = 6 * 10**9
            return 1

    monkeypatch.setattr("platform.system", lambda: "Windows")
    assert module.installed_memory() is None  # no windll
    monkeypatch.setattr(ctypes, "windll", types.SimpleNamespace(kernel32=Kernel()), raising=False)
    assert module.installed_memory() == 6 * 10**9


FAULTS = """
import resource, torch
from nanogpt_lib.support.memory import keep_freed_memory
def faults():
    torch.ones(512, 50304)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(512, 50304)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
default, told = faults(), keep_freed_memory()
for _ in range(20):  # the first holes are a few bytes too small for the next block
    faults()
print(default, told, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept_and_not_fetched_again():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    default, told, kept = done.stdout.split()
    if default == "0":
        pytest.skip("this system counts no page faults")
    assert told == "True" and int(default) > 20  # huge pages make few of 25,152
    assert int(kept) < 10


def test_an_old_glibc_is_told_otherwise_and_other_systems_are_left_alone(monkeypatch):
    said = []

    class Old:  # before 2.35 or so a threshold over 32 MB is refused
        def mallopt(self, option, value):
            said.append((option, value))
            return int((option, value) != (-3, 2**30))

    monkeypatch.setattr("ctypes.CDLL", lambda name: Old())
    monkeypatch.setattr("platform.system", lambda: "Linux")
    assert keep_freed_memory() and said == [(-3, 2**30), (-4, 0), (-1, -1)]
    for name in ("Windows", "Darwin"):
        monkeypatch.setattr("platform.system", lambda name=name: name)
        assert keep_freed_memory() is False and len(said) == 3


@pytest.mark.parametrize("memory, kept", [(1e15, True), (1e6, False), (None, True)])
def test_a_cpu_run_keeps_freed_memory_if_there_is_plenty(
    tiny_data, tmp_path, monkeypatch, memory, kept
):
    called = []
    monkeypatch.setattr(run_module, "keep_freed_memory", lambda: called.append(1))
    monkeypatch.setattr(run_module, "memory_bytes", lambda device: memory)
    train.main([*TINY, "--data", str(tiny_data), "--out", str(tmp_path / "r"), "--max-steps", "1"])
    assert bool(called) is kept
