"""Checkpoint files of nanoGPT (ckpt.pt) and of the lecture's build-nanogpt (model_NNNNN.pt).

They are pickles, which could run code when opened. Only tensors and plain values are read: an
object of an unknown class becomes a bare holder of attributes, and no function is called.
"""

import re
from pathlib import Path

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.huggingface import check_sizes, checked_shape, plain_name, quiet


class Holder:
    """Stands in for a pickled object: has its attributes, but not its class or code."""

    def __new__(cls, *args, **kwargs):
        """Accept whatever arguments the pickle passes, and ignore them."""
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        """Ignore them here too."""


def unpickle(path: Path):
    """Read the tensors, plain values and Holders of a torch.save file, without running its code."""
    try:
        unknown = get_unsafe_globals_in_checkpoint(path)
    except Exception:  # not a zip file: from PyTorch before 1.6, or damaged, as torch.load will say
        unknown = []
    try:
        with safe_globals([(Holder, name) for name in unknown]), quiet():
            return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        first = str(error).split("\n")[0]
        raise UserError(f"{path}: not a complete checkpoint file ({first})") from error
    except Exception as error:  # pickle.UnpicklingError, or whatever a damaged pickle raises
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
    """Read a checkpoint file of nanoGPT or build-nanogpt: (config, state dict, which of the two).

    The config holds fields of GPTConfig, with `vocab_size` the rows of wte; the state dict is in
    float32, with the names and shapes of model.GPT. Raises UserError if the file is from neither.
    """
    content = unpickle(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise UserError(f"{path}: not a checkpoint of nanoGPT or build-nanogpt (no entry `model`)")
    config, origin = content.get("config"), "build-nanogpt"
    shape = vars(config) if isinstance(config, Holder) else None
    if isinstance(content.get("model_args"), dict):
        shape, origin = content["model_args"], "nanoGPT"
    if shape is None:
        raise UserError(f"{path}: has neither nanoGPT's model_args nor build-nanogpt's config")
    state = {}
    for name, tensor in content["model"].items():
        if not isinstance(name, str) or not torch.is_tensor(tensor):
            raise UserError(f"{path}: refused, `model` holds something other than named tensors")
        if not name.endswith((".attn.bias", ".attn.masked_bias")):  # mask buffers
            state[plain_name(name)] = tensor.float()
    names = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
    config = checked_shape({name: shape.get(name) for name in names}, str(path))
    config["bias"] = "transformer.ln_f.bias" in state
    check_sizes(config, state, str(path))
    wte, head = state["transformer.wte.weight"], state.get("lm_head.weight")
    if head is not None and not torch.equal(head, wte):
        raise UserError(f"{path}: lm_head and wte differ, but this model ties them")
    state["lm_head.weight"] = wte
    return config, state, origin
