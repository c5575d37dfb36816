"""The parts of gpu.py that train: losses beside a CPU's, the ladder, other projects' steps."""

import contextlib
import json
import os
from dataclasses import asdict, replace
from functools import partial
from time import monotonic

import torch
import torch.nn as nn
from bench_speedups import Table, print_head
from gpu_base import (
    RECORDED,
    Plan,
    Report,
    adamw,
    new_model,
    peak_memory,
    rate,
    train,
    words,
    zipf_batches,
)
from other_checkouts import their_model
from speedups import (
    Variant,
    attention_kernel,
    for_training,
    further_changes,
    lecture_variants,
)

from nanogpt_lib.device import choose_dtype, compile_model, flops_per_token, peak_flops
from nanogpt_lib.distributed import wrap_ddp
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.optimizer import make_optimizer
from nanogpt_lib.support.processes import World
from nanogpt_lib.support.sharding import shard_blocks

# --- losses beside a CPU's ------------------------------------------------------------------------

PLAIN = Variant()
SMALL = GPTConfig(block_size=64, vocab_size=256, n_layer=4, n_head=4, n_embd=128)
NEAR = {"float32": 0.005, "bfloat16": 0.05}  # nats; 100 updates with AdamW enlarge rounding errors


def small_losses(
    device: torch.device, dtype: torch.dtype, steps: int, compile: str, how: Variant = PLAIN
) -> list[float]:
    """Losses of a small model's first updates, 8 rows of 64 bytes each."""
    torch.set_float32_matmul_precision("highest")
    text = torch.tensor(list(words().encode("ascii")))
    starts = (torch.arange(8 * steps) * 64) % (len(text) - 65)
    windows = text[starts[:, None] + torch.arange(65)].view(steps, 8, 65).to(device)
    batches = [(w[:, :-1].contiguous(), w[:, 1:].contiguous()) for w in windows]
    raw = new_model(SMALL, device)
    model, _ = compile_model(for_training(raw, how), compile, device, *batches[0], dtype)
    losses, _ = train(model, raw, make_optimizer(raw, learning_rate=1e-3), batches, device, dtype)
    return losses


def first_loss(shape: GPTConfig, device: torch.device) -> float:
    """The loss of GPT-2 124M's first weights on 128 tokens, in float32."""
    torch.set_float32_matmul_precision("highest")
    (batch,) = zipf_batches(1, 1, min(128, shape.block_size), device)
    with torch.no_grad():
        return new_model(shape, device)(*batch)[1].item()


def beside(losses: list[float], recorded: list[float], near: float) -> dict:
    """Losses compared with the recorded ones."""
    gaps = [abs(a - b) for a, b in zip(losses, recorded, strict=False)]
    result = {"first": losses[0], "last": losses[-1], "steps": len(losses)}
    result |= {"first_gap": gaps[0], "largest_gap": max(gaps), "allowed": near}
    return result | {"agrees": max(gaps) <= near, "losses": [round(x, 5) for x in losses]}


def losses(plan: Plan, report: Report) -> None:
    """First loss and 100 steps in float32 and bfloat16 beside those of a CPU."""
    known, steps = json.loads(RECORDED.read_text("utf-8")), plan.sizes["loss_steps"]
    report["recorded_on"] = known["about"]
    for name in ("float32", "bfloat16"):
        for compile in ("off", "on")[: 2 if plan.compile == "on" and name == "bfloat16" else 1]:
            how = plan.on, getattr(torch, name), steps, compile

            def compare(how=how, name=name) -> dict:
                return beside(small_losses(*how), known[name], NEAR[name])

            report.attempt(name if compile == "off" else f"{name}, compiled", compare)
    low = torch.bfloat16
    narrow = Variant(loss="alone", dtype=low, narrow=True)
    how = plan.on, low, steps, plan.compile, narrow
    report.attempt(
        "bfloat16, 16-bit residual stream",
        lambda: beside(small_losses(*how), known["bfloat16"], NEAR["bfloat16"]),
    )
    if plan.mode != "rehearsal":
        recorded = [known["gpt2_first_loss"]]
        report.attempt("gpt2", lambda: beside([first_loss(GPTConfig(), plan.on)], recorded, 1e-3))


def record_losses() -> dict:
    """What `losses` compares with, computed here."""
    cpu = torch.device("cpu")
    known = {name: small_losses(cpu, getattr(torch, name), 100, "off") for name in NEAR}
    known["gpt2_first_loss"] = first_loss(GPTConfig(), cpu)
    return known


# --- the ladder -----------------------------------------------------------------------------------

# what is worth trying first, should the time not suffice for all
FIRST = ("SDPA: cudnn", "rows × 4", "loss alone", "16-bit residual stream", "SDPA: flash")
LAST = ("inductor: tuned", "compile: max-autotune")


def changes_in_order(device: torch.device, compile: bool) -> dict[str, dict]:
    """`further_changes`, those first that promise most per second of measuring."""
    changes = further_changes(device, compile)
    if compile:
        changes["inductor: tuned"] = dict(tuned=True)
    middle = [name for name in changes if name not in FIRST + LAST]
    return {name: changes[name] for name in (*FIRST, *middle, *LAST) if name in changes}


def ladder(plan: Plan, report: Report) -> None:
    """The speed-ups of chapter 05 and what goes beyond them, while the time lasts."""
    device, sizes, on = plan.on, plan.sizes, plan.compile == "on"
    table = Table(plan.shape, sizes["rows"], sizes["steps"], device)
    report["rows_per_step"] = sizes["rows"]
    longest = sizes["guess"]
    print_head()

    def add(variant: Variant | str, always: bool) -> None:
        nonlocal longest
        if isinstance(variant, str):
            table.missing(variant.split(":")[0], variant)
        elif plan.deadline - monotonic() < longest:
            table.missing(variant.name, f"{variant.name}: no time left")
        else:
            start = monotonic()
            table.add(variant, always=always)
            if variant.compile != "off":
                longest = 1.2 * (monotonic() - start)
        report["speedups"] = table.results
        report["best"] = {**asdict(table.best), "dtype": str(table.best.dtype).split(".")[1]}

    for variant in lecture_variants(device, on):
        add(variant, always=True)
    for name, change in changes_in_order(device, on).items():
        if name in LAST and plan.mode == "quick":  # they take minutes
            continue
        add(replace(table.best, name=name, **change), always=False)


# --- build-nanogpt's and nanoGPT's steps ----------------------------------------------------------


def with_weights(model: nn.Module, weights: dict) -> nn.Module:
    """Copy the weights of the same names (nanoGPT has no biases) into a model."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    return model


def contender(plan: Plan, name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model on the device and its own optimizer, all with equal first weights."""
    shape = replace(plan.shape, vocab_multiple=64)
    ours = new_model(shape, plan.on)
    if name in plan.checkouts():
        model, optimizer = their_model(name, plan.checkouts()[name], shape, plan.on)
        return with_weights(model, ours.state_dict()), optimizer
    return ours, adamw(ours)


def contenders(plan: Plan) -> dict[str, Variant]:
    """Who makes the same updates, and how; "ours" as train.py trains on a GPU."""
    dtype = choose_dtype(plan.on)
    kernel = "cudnn" if plan.on.type == "cuda" else ""
    ours = replace(PLAIN, loss="alone", dtype=dtype)
    return {
        "ours": ours,
        **dict.fromkeys(plan.checkouts(), PLAIN),
        "ours, cuDNN and 16-bit residual stream": replace(ours, kernel=kernel, narrow=True),
        "ours, logits kept": replace(ours, loss="logits"),
    }


def time_updates(plan: Plan, name: str, only_compile: bool = False) -> dict:
    """Updates of 524,288 tokens (full size) with one contender: speed, losses, memory."""
    sizes, device, dtype = plan.sizes, plan.on, choose_dtype(plan.on)
    rows, T, warmup = sizes["update_rows"], plan.shape.block_size, 1
    micro, updates = sizes["micro_steps"], warmup + sizes["updates"]
    if only_compile:
        micro, updates = 1, 1
    torch.set_float32_matmul_precision("high")
    raw, optimizer = contender(plan, name)
    batches = zipf_batches(updates * micro, rows, T, device)
    how = contenders(plan)[name]
    with attention_kernel(how.kernel):
        form = for_training(raw, how)
        model, compiled = compile_model(form, plan.compile, device, *batches[0], dtype)
        found, seconds = train(model, raw, optimizer, batches, device, dtype, micro)
    fast = rate(seconds, rows * micro * T, warmup)
    peak = peak_flops(device)
    with torch.device("meta"):
        flops = flops_per_token(GPT(replace(plan.shape, vocab_multiple=64)))
    mfu = round(flops * fast["tokens_per_sec"] / peak, 4) if peak else None
    result = {**fast, "mfu": mfu, "first_loss": found[0], "last_loss": found[-1]}
    return result | {"losses": found, "memory_gb": peak_memory(device), "compiled": compiled}


def others(plan: Plan, report: Report) -> None:
    """The same updates by build-nanogpt, nanoGPT and ours, from equal weights."""
    sizes = plan.sizes
    report["rows"], report["micro_steps"] = sizes["update_rows"], sizes["micro_steps"]
    report["tokens_per_update"] = (
        sizes["update_rows"] * sizes["micro_steps"] * plan.shape.block_size
    )
    cost = sizes["guess"]
    for name in contenders(plan):
        start = monotonic()
        if plan.deadline - start < cost:
            report[name] = {"missing": "no time left"}
            continue
        report.attempt(name, lambda name=name: time_updates(plan, name))
        cost = 0.9 * (monotonic() - start)


# --- one process with NCCL ------------------------------------------------------------------------


@contextlib.contextmanager
def group_of_one(device: torch.device):
    """A process group of this process alone: NCCL on a GPU, gloo on a CPU."""
    dist = torch.distributed
    for library in ("NCCL", "GLOO"):  # there may be no other network
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
    backend = "nccl" if device.type == "cuda" else "gloo"
    on = device if device.type == "cuda" else None
    how = dict(store=dist.HashStore(), rank=0, world_size=1, device_id=on)
    dist.init_process_group(backend, **how)
    try:
        yield dist.init_device_mesh(device.type, (1,))
    finally:
        dist.destroy_process_group()


def wrapped(plan: Plan, kind: str, mesh) -> dict:
    """Updates of the model compiled and wrapped as train.py does with several processes."""
    device, dtype, rows = plan.on, choose_dtype(plan.on), plan.sizes["rows"]
    torch.set_float32_matmul_precision("high")
    layers = min(4, plan.shape.n_layer)  # other parts run beside this one: what counts is the loss
    raw = new_model(replace(plan.shape, vocab_multiple=64, n_layer=layers), device)
    if kind == "fsdp":
        shard_blocks(raw, raw.transformer.h, mesh)
    batches = zipf_batches(3 + plan.sizes["steps"], rows, plan.shape.block_size, device)
    ddp = partial(wrap_ddp, world=World(size=2), device=device)  # a size of 1 would not be wrapped
    wrap = ddp if kind == "ddp" else None
    model, compiled = compile_model(raw, plan.compile, device, *batches[0], dtype, wrap=wrap)
    if wrap and compiled != "compiled":
        model = wrap(model)
    found, seconds = train(model, raw, adamw(raw), batches, device, dtype)
    fast = rate(seconds, rows * plan.shape.block_size, warmup=3)
    return {**fast, "losses": found, "memory_gb": peak_memory(device), "compiled": compiled}


def parallel(plan: Plan, report: Report) -> None:
    """compile with DDP and with FSDP in a process group of one, beside neither."""
    report.attempt("alone", lambda: wrapped(plan, "alone", None))
    with group_of_one(plan.on) as mesh:
        report["backend"] = torch.distributed.get_backend()
        for kind in ("ddp", "fsdp"):
            found = report.attempt(kind, lambda kind=kind: wrapped(plan, kind, mesh))
            if "losses" in found and "losses" in report["alone"]:
                pairs = zip(found["losses"], report["alone"]["losses"], strict=True)
                report[f"{kind}: largest gap"] = max(abs(a - b) for a, b in pairs)
