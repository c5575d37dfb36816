"""Save a run so that it can be killed at any moment, and restore it bit for bit.

Exported from notebooks/09_hellaswag.ipynb; edit the notebook, not this file.

A checkpoint is a folder step_NNNNNN with the weights and the optimizer's state as safetensors,
and state.json: the rest as plain JSON, with the SHA-256 of the files and of its own entries.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.support.checkpoint_files import (
    TensorFiles,
    prune,
    read_state,
    shared_checkpoints,
    write_tensors,
    written_beside,
)
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import seal, write_json
from nanogpt_lib.support.processes import World


def weights_of(model: GPT) -> dict[str, Tensor]:
    """All weights of a model by name; a tied matrix appears once."""
    weights, seen = {}, set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            weights[name] = tensor
            seen.add(id(tensor))
    return weights


def optimizer_parameters(model: GPT, optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor]]:
    """(name, parameter) pairs in the order in which the optimizer numbers them."""
    names = {id(p): name for name, p in model.named_parameters()}
    return [(names[id(p)], p) for group in optimizer.param_groups for p in group["params"]]


def optimizer_tensors(model: GPT, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter: `transformer.wpe.weight.exp_avg` and so on."""
    state = optimizer.state_dict()["state"]
    return {
        f"{name}.{key}": value
        for index, (name, _) in enumerate(optimizer_parameters(model, optimizer))
        for key, value in state.get(index, {}).items()
    }


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
    """Write out/checkpoints/step_NNNNNN atomically: it is complete or absent.

    `state` is plain JSON: train_config, tokenizer, loader, and whatever else resuming needs. `keep`
    (0: all) and `val_losses`: see `prune`, which runs once the new one is complete. Every rank must
    call this. Only rank 0 writes, unless the model is sharded: then each rank writes its share.
    """
    final = Path(out) / "checkpoints" / f"step_{step:06d}"
    sharded = hasattr(model, "unshard")
    if not (sharded or world.is_main):
        return final
    writers = world if sharded else World()
    tensors = {"model": weights_of(model), "optimizer": optimizer_tensors(model, optimizer)}
    with written_beside(final, writers) as folder:
        files = write_tensors(folder, tensors, writers)
        if world.is_main:
            state = {"format": 2, "step": step, "model_config": vars(model.config), **state}
            write_json(folder / "state.json", seal({**state, "files": files}))
    if world.is_main:
        prune(out, step, keep, val_losses or {})
    return final


def newest_checkpoint(
    source: str | Path,
    world: World = World(),  # noqa: B008 (frozen)
) -> tuple[Path, dict]:
    """The newest intact checkpoint of a run (or `source` itself if it is one), and its state.

    A damaged one is reported on stderr and the next older one tried. Raises UserError if none is
    left. With a `world`, every rank must call this, and all get the same.
    """
    source = Path(source)
    if (source / "state.json").exists():
        return source, read_state(source, world)
    for folder in reversed(shared_checkpoints(source, world)):
        try:
            return folder, read_state(folder, world)
        except UserError as error:
            if world.is_main:
                print(f"skipping a checkpoint: {error}", file=sys.stderr)
    raise UserError(f"{source}: no intact checkpoint here (looked for checkpoints/step_*)")


def load_weights_into(model: GPT, folder: Path, state: dict) -> None:
    """Load a checkpoint's weights into a model, plain or sharded; UserError if shapes differ.

    Any number of processes may have written it: a rank of a sharded model reads only its rows.
    """
    TensorFiles(folder, "model", state).copy_into(weights_of(model))


def build_from_state(folder: Path, state: dict, kind: Callable[[GPTConfig], GPT] = GPT) -> GPT:
    """Build the model that state.json describes, by `kind`, and load the checkpoint's weights."""
    try:
        model = kind(GPTConfig(**state["model_config"]))
        load_weights_into(model, folder, state)
    except (TypeError, KeyError, ValueError, RuntimeError) as error:  # a UserError is a ValueError
        first = str(error).split("\n")[0]
        raise UserError(f"{folder}: weights and state.json do not match ({first})") from error
    return model


def load_checkpoint(source: str | Path) -> tuple[GPT, dict, Path]:
    """Build the model of a run's newest intact checkpoint; return it, the state and the folder."""
    folder, state = newest_checkpoint(source)
    return build_from_state(folder, state), state, folder


def load_optimizer(model: GPT, optimizer: torch.optim.Optimizer, folder: Path, state: dict) -> None:
    """Restore a checkpoint's optimizer state by name; a rank of a sharded model reads its rows.

    In format 1, of older versions, the name is the parameter's number. Raises UserError if
    parameters do not match.
    """
    parameters = optimizer_parameters(model, optimizer)
    numbers = {name: index for index, (name, _) in enumerate(parameters)}
    numbers |= {str(index): index for index in range(len(parameters))}
    files, entries = TensorFiles(folder, "optimizer", state), {}
    for full_name in files.shapes:
        name, _, key = full_name.rpartition(".")
        if name not in numbers:
            raise UserError(f"{folder}: the optimizer's {full_name} does not fit the model")
        index = numbers[name]
        entries.setdefault(index, {})[key] = files.like(parameters[index][1], full_name)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": entries, "param_groups": groups})
