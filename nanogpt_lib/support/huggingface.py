"""Checkpoint folders in Hugging Face's layout; loading one never runs code from its files."""

import json
import os
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.hub import hub_file

OPENAI = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")  # short for openai-community/…
SMALLEST = {"n_layer": 12, "n_head": 12, "n_embd": 768}  # defaults for fields config.json omits


# in the order they are tried
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def find_file(source: str, filename: str, optional: bool = False) -> Path | None:
    """Locate one file of a checkpoint: in a local folder, in NANOGPT_MIRROR, or on the hub.

    gpt2, gpt2-medium, gpt2-large and gpt2-xl always mean OpenAI's models; write ./gpt2 for a local
    folder with such a name. Here NANOGPT_MIRROR must be a folder; HF_ENDPOINT is the URL of a hub
    of your own. For an `optional` file that is not cached while the hub is unreachable, returns
    None.
    """
    repo = f"openai-community/{source}" if source in OPENAI else source
    mirror = os.environ.get("NANOGPT_MIRROR", "")
    local = [] if source in OPENAI else [Path(source)]
    for folder in (*local, Path(mirror) / source, Path(mirror) / repo):
        if (folder in local or mirror) and folder.is_dir():
            path = folder / filename
            return path if path.exists() else None
    return hub_file(repo, filename, optional)


def quiet() -> warnings.catch_warnings:
    """A context without PyTorch's warnings about old or odd pickles; real problems raise."""
    return warnings.catch_warnings(action="ignore")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Load a .safetensors or PyTorch file without ever unpickling code."""
    try:
        with open(path, "rb") as file:
            if file.read(24) == b"version https://git-lfs.":
                raise UserError(f"{path}: a Git LFS pointer, not the file (run git lfs pull)")
        if path.suffix == ".safetensors":
            return load_file(path)
        with quiet():
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        first = str(error).split("\n")[0]
        raise UserError(f"{path}: not a complete checkpoint file ({first})") from error
    except Exception as error:  # pickle.UnpicklingError: not only tensors
        raise UserError(f"{path}: refused, holds something other than tensors") from error
    if not isinstance(tensors, dict) or not all(map(torch.is_tensor, tensors.values())):
        raise UserError(f"{path}: refused, holds something other than named tensors")
    return tensors


def plain_name(name: str) -> str:
    """A tensor's name without the prefixes that torch.compile, DDP and FSDP add."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def parts_of(index: Path) -> list[str]:
    """The file names that an index lists, each once."""
    try:
        parts = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if not all(isinstance(part, str) for part in parts):
            raise TypeError("a part is not a file name")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index}: damaged, not a checkpoint index") from error
    return parts


def read_weights(source: str) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, from one file or from the parts that its index lists.

    Prefixes such as `_orig_mod.` and `module.` are removed from the names (see plain_name).
    """
    for name in WEIGHTS:
        if not (path := find_file(source, name)):
            continue
        tensors = {}
        for part in parts_of(path) if name.endswith(".index.json") else [name]:
            if Path(part).name != part or not (path := find_file(source, part)):
                raise UserError(f"{source}: part {part} of the checkpoint is missing")
            tensors |= read_tensors(path)
        if odd := [n for n, t in tensors.items() if t.dim() > 2 and not n.endswith(".attn.bias")]:
            raise UserError(f"{source}: {odd[0]} has more than 2 dimensions, so not a GPT-2")
        return {plain_name(name): tensor for name, tensor in tensors.items()}
    raise UserError(f"{source}: no weights here (looked for {', '.join(WEIGHTS)})")


# The values that model.py implements; the first is the default if config.json omits the field.
SUPPORTED = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "tie_word_embeddings": (True,),
}


def read_config(source: str) -> dict:
    """GPTConfig fields from a checkpoint's config.json; raises UserError if it is not a GPT-2."""
    if not (path := find_file(source, "config.json")):
        raise UserError(f"{source}: no config.json, so not a Hugging Face checkpoint")
    try:
        raw = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if raw.get("model_type") != "gpt2":
        raise UserError(f"{source}: model_type is {raw.get('model_type')!r}, expected 'gpt2'")
    for key, values in SUPPORTED.items():
        if raw.get(key, values[0]) not in values:
            raise UserError(f"{source}: {key} is {raw[key]!r}, this model supports {values[0]!r}")
    config = {
        "block_size": raw.get("n_positions", 1024),
        "vocab_size": raw.get("vocab_size", 50257),
        **{key: raw.get(key, default) for key, default in SMALLEST.items()},
    }
    if raw.get("n_inner") not in (None, 4 * config["n_embd"]):
        raise UserError(f"{source}: n_inner is {raw['n_inner']}, this model supports 4 · n_embd")
    return checked_shape(config, str(path))


def checked_shape(config: dict, where: str) -> dict:
    """Return `config` if its sizes are valid; else raise UserError that names the first bad one."""
    for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd"):
        if type(config.get(name)) is not int or config[name] < 1:
            raise UserError(f"{where}: {name} is {config.get(name)!r}, expected a number above 0")
    if config["n_embd"] % config["n_head"]:
        sizes = f"n_embd {config['n_embd']} is not divisible by n_head {config['n_head']}"
        raise UserError(f"{where}: {sizes}")
    return config


def huggingface_config(config: dict) -> dict:
    """The contents of config.json for one of our models; `config` holds the fields of GPTConfig."""
    dropout, eot = config.get("dropout", 0.0), 50256 if config["vocab_size"] == 50257 else None
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_positions": config["block_size"],
        **{key: config[key] for key in ("vocab_size", "n_layer", "n_head", "n_embd")},
        **{key: values[0] for key, values in SUPPORTED.items()},
        **{f"{where}_pdrop": dropout for where in ("embd", "attn", "resid")},
        **{f"{which}_token_id": eot for which in ("bos", "eos")},
    }


def check_sizes(config: dict, state: dict[str, torch.Tensor], where: str) -> None:
    """Raise UserError unless the weights have the sizes that the config states.

    Called before the model is built, because a wrong number could make it enormous.
    """
    multiple = config.get("vocab_multiple", 1)
    rows = -(-config["vocab_size"] // multiple) * multiple  # padded, see chapter 05
    for table, length in (("wte", rows), ("wpe", config["block_size"])):
        tensor = state.get(f"transformer.{table}.weight")
        if tensor is None or tensor.shape != (length, config["n_embd"]):
            raise UserError(f"{where}: {table} does not have the shape that its config states")
    layers = {name.split(".")[2] for name in state if name.startswith("transformer.h.")}
    if len(layers) != config["n_layer"]:
        sizes = f"{len(layers)} blocks, its config states {config['n_layer']}"
        raise UserError(f"{where}: the weights have {sizes}")
