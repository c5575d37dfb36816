"""Checkpoint files of nanoGPT (ckpt.pt) and of the lecture's build-nanogpt (model_NNNNN.pt).

They are pickles, which could run code when opened. Only their tensors and numbers are read: what
would be an object of some class becomes an empty holder of attributes, and no function is called.
"""

import re
from pathlib import Path

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.huggingface import check_sizes, checked_shape, plain_name, quiet


class Holder:
    """What a pickled object becomes: its attributes, without its class or anything of its code."""

    def __new__(cls, *args, **kwargs):
        """Take whatever arguments the pickle has, and use none."""
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        """As __new__."""


def unpickle(path: Path):
    """Tensors, numbers, texts and Holders of a file that torch.save wrote; runs nothing in it."""
    try:
        unknown = get_unsafe_globals_in_checkpoint(path)
    except Exception:  # not a zip file, so of a PyTorch before 1.6, or damaged: the next line tells
        unknown = []
    try:
        with safe_globals([(Holder, name) for name in unknown]), quiet():
            return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        first = str(error).split("\n")[0]
        raise UserError(f"{path}: not a whole checkpoint file ({first})") from error
    except Exception as error:  # pickle.UnpicklingError, or what a damaged pickle leads to
        raise UserError(f"{path}: refused, not a file of tensors and plain values") from error


def newest_file(folder: Path) -> Path | None:
    """nanoGPT's ckpt.pt in its out-dir, or the newest model_NNNNN.pt in build-nanogpt's log."""
    if (folder / "ckpt.pt").exists():
        return folder / "ckpt.pt"
    found = [
        (int(m[1]), p)
        for p in folder.glob("model_*.pt")
        if (m := re.fullmatch(r"model_(\d+)\.pt", p.name))
    ]
    return max(found)[1] if found else None


def read_foreign(path: Path) -> tuple[dict, dict[str, torch.Tensor], str]:
    """The sizes, the weights and the origin of a checkpoint file of nanoGPT or build-nanogpt.

    The sizes are fields of a GPTConfig, `vocab_size` being the rows of wte; the weights a float32
    state dict with the names and shapes of model.GPT. Raises UserError if it is neither.
    """
    content = unpickle(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise UserError(f"{path}: no checkpoint of nanoGPT or build-nanogpt (no entry `model`)")
    config, origin = content.get("config"), "build-nanogpt"
    shape = vars(config) if isinstance(config, Holder) else None
    if isinstance(content.get("model_args"), dict):
        shape, origin = content["model_args"], "nanoGPT"
    if shape is None:
        raise UserError(f"{path}: neither nanoGPT's model_args nor build-nanogpt's config in it")
    state = {}
    for name, tensor in content["model"].items():
        if not isinstance(name, str) or not torch.is_tensor(tensor):
            raise UserError(f"{path}: refused, `model` holds something else than named tensors")
        if not name.endswith((".attn.bias", ".attn.masked_bias")):  # mask buffers
            state[plain_name(name)] = tensor.float()
    names = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
    config = checked_shape({name: shape.get(name) for name in names}, str(path))
    config["bias"] = "transformer.ln_f.bias" in state
    check_sizes(config, state, str(path))
    wte, head = state["transformer.wte.weight"], state.get("lm_head.weight")
    if head is not None and not torch.equal(head, wte):
        raise UserError(f"{path}: lm_head and wte differ, this model has them tied")
    state["lm_head.weight"] = wte
    return config, state, origin
