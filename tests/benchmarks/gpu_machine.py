"""The parts of gpu.py about the card itself: memory, its peak, and the programs run on it."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from gpu_base import Plan, Report, adamw, new_model, train, words

from nanogpt_lib.device import choose_dtype, median_seconds, peak_flops
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.recipes.text import write_splits
from nanogpt_lib.support.memory import is_out_of_memory, rows_that_fit, training_bytes
from nanogpt_lib.support.places import ROOT
from nanogpt_lib.tokenizer import CharTokenizer

# --- memory ---------------------------------------------------------------------------------------


def step_bytes(plan: Plan, raw: GPT, rows: int, optimizer) -> int:
    """The allocator's peak in an update of two micro-batches, in bytes."""
    device = plan.on
    tokens = torch.randint(50257, (rows, raw.config.block_size + 1), device=device)
    batch = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    train(raw, raw, optimizer, [batch] * 2, device, choose_dtype(device), micro_steps=2)
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else 0


def fits(plan: Plan, raw: GPT, rows: int, optimizer) -> int:
    """The peak with this many rows, or 0 if memory runs out."""
    try:
        return step_bytes(plan, raw, rows, optimizer)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    raw.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    return 0


def largest(plan: Plan, raw: GPT, optimizer, start: int, grain: int) -> int:
    """The most rows, a multiple of `grain`, that one update ran with; 0 if none did."""
    good, bad = 0, None
    rows = max(grain, start // grain * grain)
    while (bad is None or bad - good > grain) and plan.deadline - time.monotonic() > 3:
        if fits(plan, raw, rows, optimizer):
            good = rows
        else:
            bad = rows
        if bad is None:
            rows += max(grain, good // 4 // grain * grain)
        else:
            rows = good + (bad - good) // 2 // grain * grain
    return good


def card_of(plan: Plan, raw: GPT, optimizer, gigabytes: float | None) -> dict:
    """What the formula says that fits, and what does; on a card limited to `gigabytes`."""
    total = torch.cuda.get_device_properties(plan.on).total_memory
    memory = min(total, gigabytes * 1e9 if gigabytes else torch.cuda.mem_get_info()[0])
    if gigabytes:
        torch.cuda.set_per_process_memory_fraction(memory / total)
    else:
        memory += torch.cuda.memory_reserved()
    said = rows_that_fit(raw, choose_dtype(plan.on), memory, 512)
    grain = 4 if memory < 40e9 else 8
    try:
        found = largest(plan, raw, optimizer, said or grain, grain)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return {"gigabytes": round(memory / 1e9, 1), "formula": said, "largest": found, "grain": grain}


def memory(plan: Plan, report: Report) -> None:
    """The formula beside the allocator, not compiled; then the most rows that fit."""
    torch.set_float32_matmul_precision("high")
    shape = GPTConfig(**plan.sizes["shape"], vocab_multiple=64)
    raw, dtype = new_model(shape, plan.on), choose_dtype(plan.on)
    optimizer = adamw(raw)
    step_bytes(plan, raw, 1, optimizer)  # makes the optimizer's averages

    def compare(rows: int) -> dict:
        said, found = training_bytes(raw, rows, dtype), step_bytes(plan, raw, rows, optimizer)
        ratio = round(found / said, 4) if found else None
        return {"formula_gb": said / 1e9, "allocator_gb": found / 1e9, "ratio": ratio}

    for rows in (1, 4, plan.sizes["rows"]):
        report.attempt(f"{rows} rows", lambda rows=rows: compare(rows))
    if plan.on.type == "cuda":
        report.attempt("a 24 GB card", lambda: card_of(plan, raw, optimizer, 24.0))
    if plan.on.type == "cuda" and plan.mode == "full":  # other parts run beside a quick one
        report.attempt("this card", lambda: card_of(plan, raw, optimizer, None))


# --- peak -----------------------------------------------------------------------------------------


def products(plan: Plan, n: int, k: int, m: int) -> dict:
    """TFLOP/s of the product (n, k) × (k, m) of random numbers in 16 bits."""
    device, dtype = plan.on, choose_dtype(plan.on)
    a, b = (torch.randn(s, device=device).to(dtype) for s in ((n, k), (k, m)))
    seconds = median_seconds(lambda: a @ b, device, repeats=10, warmup=3)
    return {"tflops": round(2 * n * k * m / seconds / 1e12, 1)}


def copying(plan: Plan) -> dict:
    """Bytes read and written per second by a copy, and its size."""
    source = torch.ones(plan.sizes["matrix"] ** 2 * 16, dtype=torch.float32, device=plan.on)
    target = torch.empty_like(source)
    seconds = median_seconds(lambda: target.copy_(source), plan.on, repeats=10, warmup=3)
    return {"terabytes_per_sec": round(2 * source.nbytes / seconds / 1e12, 3)}


def peak(plan: Plan, report: Report) -> None:
    """What the card reaches: a large product, those of GPT-2's layers, a copy."""
    n, C = plan.sizes["matrix"], plan.shape.n_embd
    data_sheet = peak_flops(plan.on)
    report["data_sheet_tflops"] = data_sheet and data_sheet / 1e12
    sizes = {"square": (n, n, n), "mlp": (4 * n, C, 4 * C), "mlp, back": (4 * n, 4 * C, C)}
    sizes["head"] = (2 * n, C, 50304)
    for name, size in sizes.items():
        report.attempt(name, lambda size=size: products(plan, *size))
    report.attempt("copy", lambda: copying(plan))


# --- the programs ---------------------------------------------------------------------------------


def run_here(*command) -> dict:
    """Run one of the library's programs; its status and last lines."""
    words = [sys.executable, str(ROOT / "nanogpt_lib" / command[0]), *map(str, command[1:])]
    start = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        print(done.stdout, done.stderr, file=sys.stderr)
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr else "no message")
    seconds = round(time.perf_counter() - start, 1)
    return {"seconds": seconds, "last_lines": done.stdout.strip().splitlines()[-6:]}


def programs(plan: Plan, report: Report) -> None:
    """train.py, its --resume, and sample.py on this device, with a small model of characters."""
    text = words()
    tokenizer = CharTokenizer(text)
    meta = {"name": "words", "source": "made up", "tokenizer": tokenizer.describe()}
    meta["vocab_size"] = tokenizer.vocab_size
    ids, steps = np.array(tokenizer.encode(text)), 4 if plan.mode == "rehearsal" else 60
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder, "data"), Path(folder, "run")
        write_splits(data, meta, ids[:-3000], ids[-3000:])
        flags = "--n-layer 2 --n-head 2 --n-embd 64 --block-size 64 --batch-size 8 "
        flags += "--total-batch-size 1024 --warmup-steps 2 --eval-every 0 --eval-tokens 960 "
        flags += "--sample-tokens 20 --sample-prompt The --learning-rate 4e-3 --min-lr 1e-4"
        run = ["--data", data, "--out", out, "--device", plan.on.type]
        first = ["train.py", *flags.split(), *run, "--max-steps", steps]
        report.attempt("train.py", lambda: run_here(*first))
        draw = ["sample.py", "--checkpoint", out, "--device", plan.on.type, "--prompt", "The "]
        report.attempt("sample.py", lambda: run_here(*draw, "--max-new-tokens", 80))
        if plan.mode != "rehearsal":
            again = ["train.py", "--resume", "--out", out, "--max-steps", steps + 20]
            report.attempt("train.py --resume", lambda: run_here(*again))
