"""What device.py promises."""

import time
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from conftest import TINY, log_of
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
    flops_per_token,
    median_seconds,
    peak_flops,
)
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.optimizer import make_optimizer
from nanogpt_lib.support.errors import UserError

pytestmark = pytest.mark.processor  # once more as with AVX2 only
CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")
SHAPE = dict(block_size=16, vocab_size=50, n_layer=2, n_head=2, n_embd=16)


def tiny(**changes):
    torch.manual_seed(1)
    return GPT(GPTConfig(**{**SHAPE, **changes}))


def batch(rows=3):
    tokens = torch.randint(0, 50, (rows, 17), generator=torch.Generator().manual_seed(2))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


# --- device and dtype -----------------------------------------------------------------------------


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
    assert choose_dtype(CPU, "bfloat16") == torch.bfloat16  # slow, but the user's choice
    with pytest.raises(UserError, match="--dtype bfloat16.*use float16"):
        choose_dtype(CUDA, "bfloat16")


def test_emulated_bfloat16_does_not_count_as_supported(monkeypatch):
    asked = {}
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **how: asked.update(how) or False)
    assert choose_dtype(CUDA) == torch.float16
    assert asked == {"including_emulation": False}


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
