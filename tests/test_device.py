"""What device.py promises."""

import platform
import re
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from conftest import ROOT, TINY, log_of
from nanogpt_lib import device as module
from nanogpt_lib import run as run_module
from nanogpt_lib import train
from nanogpt_lib.checkpoint import load_checkpoint
from nanogpt_lib.device import (
    allow_tf32,
    autocast,
    choose_dtype,
    compile_model,
    detect_device,
    fast_products,
    flops_per_token,
    median_seconds,
    peak_flops,
)
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.optimizer import make_optimizer
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.memory import keep_freed_memory

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")
SHAPE = dict(block_size=16, vocab_size=50, n_layer=2, n_head=2, n_embd=16)


def tiny(**changes):
    torch.manual_seed(1)
    return GPT(GPTConfig(**{**SHAPE, **changes}))


def batch(rows=3):
    tokens = torch.randint(0, 50, (rows, 17), generator=torch.Generator().manual_seed(2))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


# --- which device, which number format ------------------------------------------------------------


def test_auto_takes_the_best_device_there_is(monkeypatch):
    for cuda, mps, best in [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=cuda: there)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=mps: there)
        assert detect_device().type == best
        assert detect_device(best) == torch.device(best)


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps", "tpu", ""])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=rf"--device {name}: not available .*has: cpu\)") as error:
        detect_device(name)
    assert "\n" not in str(error.value)


def test_the_number_format_follows_what_the_hardware_multiplies(monkeypatch):
    def bf16(gpu: bool, cpu: bool):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: gpu)
        monkeypatch.setattr(module, "cpu_multiplies_bfloat16", lambda: cpu)

    bf16(gpu=True, cpu=True)  # A100, a recent server CPU
    assert choose_dtype(CUDA) == choose_dtype(CPU) == torch.bfloat16
    bf16(gpu=False, cpu=False)  # T4 or V100, a laptop
    assert choose_dtype(CUDA) == torch.float16
    assert choose_dtype(CPU) == torch.float32
    assert choose_dtype(MPS) == torch.float32  # Apple's GPU is neither CUDA nor the CPU
    assert choose_dtype(MPS, "float16") == torch.float16
    assert choose_dtype(CPU, "bfloat16") == torch.bfloat16  # slow, but the user's wish
    with pytest.raises(UserError, match="--dtype bfloat16.*use float16"):
        choose_dtype(CUDA, "bfloat16")


def test_emulated_bfloat16_does_not_count_as_supported(monkeypatch):
    asked = {}
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **how: asked.update(how) or False)
    assert choose_dtype(CUDA) == torch.float16
    assert asked == {"including_emulation": False}


def test_a_cpu_without_the_instructions_computes_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert choose_dtype(CPU) == torch.float32
    monkeypatch.setattr(module.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert choose_dtype(CPU) == torch.float32


@pytest.mark.parametrize("name", ["float16", "float64", "bf16", ""])
def test_a_format_one_cannot_train_with_is_refused_with_those_one_can(name):
    with pytest.raises(UserError, match=rf"--dtype {name}: .*bfloat16 or float") as error:
        choose_dtype(CPU, name)
    assert "\n" not in str(error.value)


# --- computing in fewer bits ----------------------------------------------------------------------


def test_autocast_rounds_products_and_leaves_weights_and_loss_in_float32():
    model, (x, y) = tiny(), batch()
    exact = model(x, y)[1]
    with autocast(CPU, torch.bfloat16):
        logits, loss = model(x, y)
    loss.backward()
    assert logits.dtype == torch.bfloat16 and loss.dtype == torch.float32
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    assert 0 < abs(loss.item() - exact.item()) < 2e-2


def test_autocast_to_float32_changes_no_bit():
    model, (x, y) = tiny(), batch()
    with autocast(CPU, torch.float32):
        inside = model(x, y)[0]
    assert torch.equal(inside, model(x, y)[0])


def test_a_float16_run_scales_its_gradients_and_follows_the_float32_run(
    tiny_data, tmp_path, monkeypatch
):
    logs = []
    for dtype in (torch.float32, torch.float16):  # as on a GPU that cannot multiply bfloat16
        monkeypatch.setattr(run_module, "choose_dtype", lambda device, wanted, dtype=dtype: dtype)
        out = tmp_path / str(dtype)
        assert train.main([*TINY, "--data", str(tiny_data), "--out", str(out)]) == 0
        logs.append([record for record in log_of(out) if "train_loss" in record])
    assert load_checkpoint(out)[1]["scaler"]["scale"] == 2.0**16  # no step was skipped
    apart = [abs(a["train_loss"] - b["train_loss"]) for a, b in zip(*logs, strict=True)]
    assert max(apart) < 1e-2 and sum(d > 0 for d in apart) > len(apart) / 2  # it did use float16
    for exact, half in zip(*logs, strict=True):
        assert abs(half["grad_norm"] / exact["grad_norm"] - 1) < 0.05  # measured unscaled


def test_tf32_is_allowed_for_products():
    before = torch.get_float32_matmul_precision()
    try:
        allow_tf32()
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


# --- compilation ----------------------------------------------------------------------------------


@pytest.fixture
def fast_compiler(monkeypatch):
    """torch.compile that traces and differentiates, but needs no C++ compiler."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


def test_compiling_keeps_the_names_and_shares_the_weights(fast_compiler):
    raw, (x, y) = tiny(), batch()
    names, before = list(raw.state_dict()), raw.lm_head.weight.detach().clone()
    run, done = compile_model(raw, "on", CPU, x, y, torch.float32)
    assert done == "compiled" and run is not raw
    assert list(raw.state_dict()) == names and not any("_orig_mod" in name for name in names)
    assert all(p.grad is None for p in raw.parameters())  # the trial leaves nothing behind
    optimizer = make_optimizer(raw, learning_rate=1e-2)
    losses = []
    for _ in range(5):
        losses.append(run(x, y)[1])
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] and not torch.equal(before, raw.lm_head.weight)
    torch.testing.assert_close(run(x, y)[1], raw(x, y)[1], rtol=1e-5, atol=1e-6)


def test_the_plain_module_takes_other_lengths_while_the_other_is_compiled(fast_compiler):
    raw, (x, y) = tiny(), batch()
    compile_model(raw, "on", CPU, x, y, torch.float32)
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert [raw(x[:1, :t])[0].size(1) for t in (1, 5, 16)] == [1, 5, 16]


def test_a_failing_compiler_gives_the_plain_model_and_one_line_of_reason(monkeypatch):
    def broken(model, mode=None):
        def run(x, y):
            model(x, y)[1].backward()  # half done, then it fails
            raise RuntimeError("InvalidCxxCompiler: no g++\nand forty more lines")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    raw, (x, y) = tiny(), batch()
    run, done = compile_model(raw, "on", CPU, x, y, torch.float32)
    assert run is raw and done == "not compiled (RuntimeError: InvalidCxxCompiler: no g++)"
    assert all(p.grad is None for p in raw.parameters())


@pytest.mark.parametrize("wanted, device, compiles", [("off", CUDA, 0), ("auto", CPU, 0)])
def test_nothing_is_compiled_unasked(wanted, device, compiles, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, mode=None: pytest.fail("compiled"))
    raw = tiny()
    assert compile_model(raw, wanted, device, *batch(), torch.float32) == (raw, "not compiled")


# --- operations and time --------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"n_layer": 3, "n_embd": 32}, {"vocab_multiple": 64}])
def test_operations_per_token_equal_what_pytorch_counts(changes):
    model, (x, y) = tiny(attention="manual", **changes), batch()
    with FlopCounterMode(display=False) as counter:
        model(x, y)[1].backward()
    assert counter.get_total_flops() == flops_per_token(model) * x.numel()


def test_gpt2_takes_about_855_million_operations_per_token():
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab_multiple=64))
    weights = 12 * 12 * 768**2 + 50304 * 768
    assert flops_per_token(model) == 6 * weights + 12 * 12 * 768 * 1024 == 854_654_976


@pytest.mark.parametrize(
    "name, tera",
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),  # not an L4
        ("NVIDIA L4", 121),
        ("NVIDIA A10G", 70),  # not an A10
        ("Tesla T4", 65),
        ("Tesla V100-SXM2-16GB", 125),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA RTX A1000", None),  # not an A100
        ("AMD Instinct MI300X", None),
    ],
)
def test_a_card_is_known_by_its_whole_name_and_an_unknown_one_gets_no_figure(
    name, tera, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(CUDA) == (tera and tera * 1e12)
    assert peak_flops(CPU) is None and peak_flops(MPS) is None


def test_the_clock_waits_for_the_device_before_every_look(monkeypatch):
    told = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: told.append("wait"))
    monkeypatch.setattr(module, "perf_counter", lambda: told.append("look") or len(told))
    median_seconds(lambda: told.append("work"), CUDA, repeats=2, warmup=1)
    assert told == ["wait", "look", "work", "wait", "look"] * 3


def test_the_median_leaves_out_warm_up_and_one_disturbed_call():
    naps = iter([0.3, 0.0, 0.3, 0.0])
    assert median_seconds(lambda: time.sleep(next(naps)), CPU, repeats=3, warmup=1) < 0.3


# --- memory ---------------------------------------------------------------------------------------


def saved_bytes(model, x, y, dtype) -> int:
    """What PyTorch keeps for the backward pass, the model's own parameters apart; exact."""
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


def peak_bytes(function) -> int:
    """The most a call holds at one time beyond what was there before, by the allocator's events."""
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held, most = 0, 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "rows, shape",
    [
        (2, dict(block_size=128, n_layer=2, n_embd=64, vocab_size=1000)),
        (3, dict(block_size=64, n_layer=4, n_embd=128, vocab_size=5025, vocab_multiple=64)),
        (1, dict(block_size=256, n_layer=3, n_embd=96, vocab_size=20_000, vocab_multiple=64)),
        (8, dict(block_size=128, n_layer=6, n_embd=192, vocab_size=96)),
    ],
)
def test_the_memory_formula_meets_what_a_step_takes(rows, shape, dtype):
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_head=4, **shape))
    tokens = torch.randint(shape["vocab_size"], (rows, shape["block_size"] + 1))
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    optimizer = make_optimizer(model, learning_rate=1e-4)

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
    measured = 12 * weights + peak_bytes(step)  # weights and two averages were there before
    assert module.training_bytes(model, rows, dtype) == pytest.approx(measured, rel=0.02)
    # what a token adds, against an exact count: the difference of two and one times the rows
    once, twice = (saved_bytes(model, x.repeat(n, 1), y.repeat(n, 1), dtype) for n in (1, 2))
    growth = module.training_bytes(model, 2 * rows, dtype)
    growth -= module.training_bytes(model, rows, dtype)
    V, C, size = shape["vocab_size"], shape["n_embd"], 4 if dtype == torch.float32 else 2
    loss = max(model.config.padded_vocab_size * size + 8 * V, 16 * C) * x.numel()
    assert growth - loss == pytest.approx(twice - once, rel=0.005)


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
        "from nanogpt_lib.config import run_program\n"
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


# --- packed weights


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("rows", [1, 5])
def test_packed_products_equal_plain_ones_and_leave_with_their_context(dtype, tolerance, rows):
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(33, 17), torch.randn(rows, 33)
    with torch.inference_mode():
        plain = layer(x)
        with fast_products(CPU, dtype, rows):
            inside = [layer(x) for _ in range(2)]
        assert inside[0].dtype == dtype and torch.equal(*inside)
        assert torch.allclose(inside[0].float(), plain, atol=tolerance)
        assert torch.equal(layer(x), plain)


def test_each_weight_is_packed_once_per_format_and_autocast_off_means_its_own():
    layer, x = torch.nn.Linear(33, 17, bias=False), torch.randn(2, 33)
    with torch.inference_mode(), module.PackedLinear(1) as packed:
        if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            pytest.skip("PyTorch without oneDNN")
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == layer(x).dtype == torch.bfloat16
            with torch.autocast("cpu", enabled=False):
                assert layer(x).dtype == torch.float32
        assert len(packed.packed) == 2


def test_a_cpu_without_bfloat16_products_packs_nothing(monkeypatch):
    monkeypatch.setattr(module, "cpu_multiplies_bfloat16", lambda: False)
    monkeypatch.setattr(module, "PackedLinear", None)  # would not be callable
    with fast_products(CPU, torch.bfloat16, 1):
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_a_gelu_computed_with_its_layer_is_not_computed_again(dtype, tolerance):
    torch.manual_seed(0)
    layer, gelu, x = torch.nn.Linear(33, 17), torch.nn.GELU("tanh"), torch.randn(5, 33)
    with torch.inference_mode():
        plain = gelu(layer(x))
        with fast_products(CPU, dtype, 5, gelu_after=[layer.weight]):
            fused, again = gelu(layer(x)), gelu(x)
        assert torch.allclose(fused.float(), plain, atol=tolerance)
        assert torch.equal(again.float(), gelu(x))  # another GELU is not passed over


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
