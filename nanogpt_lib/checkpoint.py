"""Save a run so that it can be killed at any moment, and load it so that nothing can tell.

Exported from notebooks/09_hellaswag.ipynb; edit the notebook, not this file.

A checkpoint is a folder step_NNNNNN with model.safetensors, optimizer.safetensors and state.json,
which holds everything else as plain JSON, the size and SHA-256 of the other two, and its own.
"""

import contextlib
import os
import shutil
import sys
from pathlib import Path

import torch
import torch.nn as nn
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nanogpt_lib.model import GPT, GPTConfig, load_weights
from nanogpt_lib.pretrained import crop_block_size
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import file_sha256, flush_names, read_sealed, seal, write_json
from nanogpt_lib.support.processes import World
from nanogpt_lib.support.sharding import collect, part_of
from nanogpt_lib.tokenizer import CharTokenizer, GPT2Tokenizer, tokenizer_from


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as flat named tensors: `3.exp_avg` belongs to parameter 3."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{key}": value for index, entry in state.items() for key, value in entry.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put `optimizer_tensors` back into an optimizer over the same parameters."""
    state: dict[int, dict] = {}
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for name, value in tensors.items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = part_of(value, params[int(index)])
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def unwrapped(model: nn.Module) -> GPT:
    """The GPT inside torch.compile's or DDP's wrapper: its names carry no `_orig_mod.`."""
    while inner := getattr(model, "_orig_mod", None) or getattr(model, "module", None):
        model = inner
    return model


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> dict:
    """Write a .safetensors file, flushed to the disk; return its line for state.json."""
    save_file(tensors, path)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def write_checkpoint(folder: Path, tensors: dict[str, dict[str, Tensor]], state: dict) -> None:
    """Write the three files of a checkpoint into a folder that exists."""
    files = {
        f"{name}.safetensors": write_tensors(folder / f"{name}.safetensors", content)
        for name, content in tensors.items()
    }
    write_json(folder / "state.json", seal({**state, "files": files}))


def save_checkpoint(
    out: str | Path,
    step: int,
    model: GPT,
    optimizer: torch.optim.Optimizer,
    state: dict,
    keep: int = 0,
    val_losses: dict[int, float] | None = None,
    world: World = World(),  # noqa: B008 (frozen)
) -> Path:
    """Write out/checkpoints/step_NNNNNN: beside, flushed, then renamed: it is whole or not there.

    `state` is plain JSON: train_config, tokenizer, loader, and what else the caller must have back.
    `keep` and `val_losses`: see `prune`, which works after the new one is whole. Every rank calls,
    to give its part of sharded tensors; rank 0 alone writes.
    """
    model = unwrapped(model)
    weights = model.state_dict()
    del weights["lm_head.weight"]  # lm_head is wte: one matrix, saved once
    both = {"model": weights, "optimizer": optimizer_tensors(optimizer)}
    tensors = {name: collect(content, world) for name, content in both.items()}
    state = {"format": 1, "step": step, "model_config": vars(model.config), **state}
    folder = Path(out) / "checkpoints"
    final, temporary = folder / f"step_{step:06d}", folder / f"step_{step:06d}.tmp"
    if not world.is_main:
        return final
    for stale in folder.glob("step_*.tmp"):  # what a kill left
        shutil.rmtree(stale, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        write_checkpoint(temporary, tensors, state)
        flush_names(temporary)
        discard(final)  # only ever a damaged one: a whole one is resumed
        os.replace(temporary, final)
        flush_names(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"{final}: cannot be saved ({error}); the older ones are whole") from error
    prune(out, keep, val_losses or {})
    return final


def checkpoints(out: str | Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first; half-written ones (.tmp) are not listed."""
    found = (Path(out) / "checkpoints").glob("step_*")
    return sorted((p for p in found if p.name[5:].isdecimal()), key=step_of)


def step_of(folder: Path) -> int:
    """The step in a checkpoint's name."""
    return int(folder.name[5:])


def discard(folder: Path) -> None:
    """Remove a checkpoint, if it is there; killed half-way, none is left under its name."""
    doomed = folder.with_name(folder.name + ".old.tmp")
    with contextlib.suppress(OSError):
        os.replace(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def prune(out: str | Path, keep: int, val_losses: dict[int, float]) -> None:
    """Keep the newest `keep` (0: all) and the one of the lowest validation loss; discard the rest.

    `val_losses` holds step → loss; a checkpoint of a step that is not in it is never the best.
    """
    folders = checkpoints(out)
    rated = [folder for folder in folders if step_of(folder) in val_losses]
    best = min(rated, key=lambda folder: val_losses[step_of(folder)], default=None)
    for folder in folders[:-keep] if keep else []:
        if folder != best:
            discard(folder)


def read_state(folder: Path) -> dict:
    """Read state.json of one checkpoint and verify the other files against it; raises UserError."""
    path = folder / "state.json"
    try:
        state = read_sealed(path)
        if state["format"] != 1:
            raise UserError(f"{path}: format {state['format']}, this library reads 1")
        for name, expected in state["files"].items():
            file = folder / Path(name).name
            if not file.exists() or file.stat().st_size != expected["bytes"]:
                raise UserError(f"{file}: missing or cut short")
            if file_sha256(file) != expected["sha256"]:
                raise UserError(f"{file}: damaged (its SHA-256 is not the recorded one)")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged") from error
    return state


def newest_checkpoint(source: str | Path) -> tuple[Path, dict]:
    """The newest whole checkpoint of a run (or the one that `source` is), and its state.

    A damaged one is reported on stderr and the next older one tried. Raises UserError if none is
    left.
    """
    source = Path(source)
    if (source / "state.json").exists():
        return source, read_state(source)
    for folder in reversed(checkpoints(source)):
        try:
            return folder, read_state(folder)
        except UserError as error:
            print(f"skipping a checkpoint: {error}", file=sys.stderr)
    raise UserError(f"{source}: no whole checkpoint here (looked for checkpoints/step_*)")


def build_from_state(folder: Path, state: dict) -> GPT:
    """The model that state.json describes, with the weights beside it."""
    try:
        model = GPT(GPTConfig(**state["model_config"]))
        tensors = load_file(folder / "model.safetensors")
        model.load_state_dict({**tensors, "lm_head.weight": tensors["transformer.wte.weight"]})
    except (SafetensorError, OSError, TypeError, KeyError, ValueError, RuntimeError) as error:
        first = str(error).split("\n")[0]
        raise UserError(
            f"{folder}: weights and state.json do not fit together ({first})"
        ) from error
    return model


def load_checkpoint(source: str | Path) -> tuple[GPT, dict, Path]:
    """Build the model of a run's newest whole checkpoint; return it, the state and the folder."""
    folder, state = newest_checkpoint(source)
    return build_from_state(folder, state), state, folder


def load_optimizer(folder: Path, optimizer: torch.optim.Optimizer) -> None:
    """Load optimizer.safetensors of a checkpoint into an optimizer over the same parameters.

    Raises UserError if it belongs to other parameters.
    """
    path = folder / "optimizer.safetensors"
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        tensors = load_file(path)
        fit = all(  # `step` is a single number
            tensor.dim() == 0 or tensor.shape == parameters[int(name.split(".")[0])].shape
            for name, tensor in tensors.items()
        )
        if not fit:
            raise ValueError("other shapes")
        restore_optimizer(optimizer, tensors)
    except (SafetensorError, OSError, IndexError, KeyError, ValueError) as error:
        raise UserError(f"{path}: does not fit the model ({error})") from error


def load_model(source: str, **changes) -> tuple[GPT, GPT2Tokenizer | CharTokenizer | None]:
    """Model and tokenizer of a run, of one checkpoint, or of a GPT-2 checkpoint (hub name, folder).

    `changes` override block_size (the context is cropped), dropout and vocab_multiple (padding).
    The tokenizer is None if a folder holds another vocabulary than GPT-2's. Raises UserError if
    there is nothing of that name.
    """
    ours = Path(source).exists() and not (Path(source) / "model.safetensors").exists()
    if not ours and not (Path(source) / "state.json").exists():
        model, tokenizer = GPT.from_pretrained(source, **changes), GPT2Tokenizer()
        return model, tokenizer if model.config.vocab_size == tokenizer.vocab_size else None
    folder, state = newest_checkpoint(source)
    model = build_from_state(folder, state)
    if changes:
        config, weights = vars(model.config).copy(), model.state_dict()
        crop_block_size(config, weights, changes.pop("block_size", config["block_size"]))
        model = GPT(GPTConfig(**{**config, **changes}))
        load_weights(model, weights, config["vocab_size"])
    return model, tokenizer_from(state["tokenizer"])
