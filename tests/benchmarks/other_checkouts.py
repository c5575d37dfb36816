"""The models and steps of build-nanogpt and nanoGPT, from their own files; for comparisons.

Their classes and optimizers are used unchanged; none of their code is copied here. Each is timed as
committed and, since neither compiles everywhere by default, compiled as well.
"""

import contextlib
import importlib.util
import io
import sys
import types
from pathlib import Path

import torch
import torch.nn as nn

from nanogpt_lib.device import autocast, median_seconds
from nanogpt_lib.model import GPTConfig
from nanogpt_lib.support.errors import UserError


def read_source(path: Path) -> str:
    """The text of one of their files; raises UserError if it is missing."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def build_nanogpt(folder: Path) -> dict:
    """The classes of build-nanogpt's train_gpt2.py: its source up to where a run begins."""
    source = read_source(folder / "train_gpt2.py")
    classes, mark, _ = source.partition("\n# run the training loop")
    if not mark:
        raise UserError(f"{folder / 'train_gpt2.py'}: not the lecture's last version")
    stub = types.ModuleType("hellaswag")  # it is imported there; a step does without
    stub.render_example = stub.iterate_examples = None
    before, sys.modules["hellaswag"] = sys.modules.get("hellaswag"), stub
    try:
        names = {"__name__": "build_nanogpt", "master_process": False}
        sys.modules["build_nanogpt"] = types.ModuleType("build_nanogpt")  # dataclasses look it up
        exec(compile(classes, "train_gpt2.py", "exec"), names)
    finally:
        del sys.modules["hellaswag"]
        if before:
            sys.modules["hellaswag"] = before
    return names


def nanogpt(folder: Path) -> dict:
    """The classes of nanoGPT's model.py."""
    read_source(folder / "model.py")
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module
    spec.loader.exec_module(module)
    return vars(module)


SIZES = ("n_layer", "n_head", "n_embd", "block_size")


def their_model(name: str, folder: Path, shape: GPTConfig, device) -> tuple[nn.Module, object]:
    """Model and optimizer as their training scripts make them, padded to 50304 tokens."""
    read = {"build-nanogpt": build_nanogpt, "nanoGPT": nanogpt}[name](folder)
    sizes = {key: getattr(shape, key) for key in SIZES}
    decay = dict(weight_decay=0.1, learning_rate=6e-4, device_type=device.type)
    if name == "nanoGPT":  # no biases and no dropout: the defaults of its train.py
        sizes |= dict(bias=False, dropout=0.0)
        decay["betas"] = (0.9, 0.95)
    with contextlib.redirect_stdout(io.StringIO()):  # they print their number of parameters
        torch.manual_seed(0)
        model = read["GPT"](read["GPTConfig"](vocab_size=50304, **sizes)).to(device)
        return model, model.configure_optimizers(**decay)


def time_theirs(
    name: str, folder: Path, shape: GPTConfig, rows: int, steps: int, device, dtype, compiled: bool
) -> tuple[float, float]:
    """Median seconds of their step, as in their loops: TF32 allowed, autocast, clipping at 1."""
    torch.set_float32_matmul_precision("high")
    model, optimizer = their_model(name, folder, shape, device)
    run = torch.compile(model) if compiled else model
    tokens = torch.randint(50257, (rows, shape.block_size + 1), device=device)
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    losses = []

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, dtype):
            _, loss = run(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if not losses:
            losses.append(loss.item())

    return median_seconds(step, device, repeats=steps, warmup=2), losses[0]
