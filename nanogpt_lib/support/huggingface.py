"""Checkpoint folders as Hugging Face writes them; nothing in them is ever unpickled as code."""

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
SMALLEST = {"n_layer": 12, "n_head": 12, "n_embd": 768}  # what an absent entry of config.json means


# in the order in which they are looked for
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def find_file(source: str, filename: str, optional: bool = False) -> Path | None:
    """Locate one file of a checkpoint: in a local folder, in NANOGPT_MIRROR, or on the hub.

    gpt2, gpt2-medium, gpt2-large and gpt2-xl always mean OpenAI's models; a local folder of such a
    name is written ./gpt2. NANOGPT_MIRROR is a folder here; a hub of your own, under a URL, is
    named by HF_ENDPOINT. An `optional` file that can neither be cached nor asked for is None.
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
    """A context without PyTorch's warnings about old or odd pickles: what matters is an error."""
    return warnings.catch_warnings(action="ignore")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Load a .safetensors or PyTorch file without ever unpickling code."""
    try:
        with open(path, "rb") as file:
            if file.read(24) == b"version https://git-lfs.":
                raise UserError(f"{path}: a pointer of Git LFS, not the file (git lfs pull)")
        if path.suffix == ".safetensors":
            return load_file(path)
        with quiet():
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        first = str(error).split("\n")[0]
        raise UserError(f"{path}: not a whole checkpoint file ({first})") from error
    except Exception as error:  # pickle.UnpicklingError: not a file of tensors, or not only
        raise UserError(f"{path}: refused, holds something else than tensors") from error
    if not isinstance(tensors, dict) or not all(map(torch.is_tensor, tensors.values())):
        raise UserError(f"{path}: refused, holds something else than named tensors")
    return tensors


def plain_name(name: str) -> str:
    """A tensor's name without what torch.compile, DDP and FSDP put into it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def parts_of(index: Path) -> list[str]:
    """The file names that an index lists, each once."""
    try:
        parts = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if not all(isinstance(part, str) for part in parts):
            raise TypeError("a part is no file name")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index}: damaged, not an index of parts") from error
    return parts


def read_weights(source: str) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, from one file or from the parts an index lists, plainly named.

    Names lose `_orig_mod.` and `module.`, in which a compiled or wrapped model was saved.
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
            raise UserError(f"{source}: {odd[0]} is no matrix, so not a GPT-2")
        return {plain_name(name): tensor for name, tensor in tensors.items()}
    raise UserError(f"{source}: no weights here (looked for {', '.join(WEIGHTS)})")


# What model.py computes. Each of these left unsaid in config.json means the first value.
SUPPORTED = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "tie_word_embeddings": (True,),
}


def read_config(source: str) -> dict:
    """The fields of a GPTConfig, from a checkpoint's config.json; UserError if it is no GPT-2."""
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
            raise UserError(f"{source}: {key} is {raw[key]!r}, this model computes {values[0]!r}")
    config = {
        "block_size": raw.get("n_positions", 1024),
        "vocab_size": raw.get("vocab_size", 50257),
        **{key: raw.get(key, default) for key, default in SMALLEST.items()},
    }
    if raw.get("n_inner") not in (None, 4 * config["n_embd"]):
        raise UserError(f"{source}: n_inner is {raw['n_inner']}, this model computes 4 · n_embd")
    return checked_shape(config, str(path))


def checked_shape(config: dict, where: str) -> dict:
    """The same `config` if its sizes can be a model's, else a UserError that names the first."""
    for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd"):
        if type(config.get(name)) is not int or config[name] < 1:
            raise UserError(f"{where}: {name} is {config.get(name)!r}, expected a number above 0")
    if config["n_embd"] % config["n_head"]:
        sizes = f"n_embd {config['n_embd']} cannot be divided by n_head {config['n_head']}"
        raise UserError(f"{where}: {sizes}")
    return config


def huggingface_config(config: dict) -> dict:
    """What config.json says about a model of ours; `config` holds the fields of GPTConfig."""
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
    """Raise UserError unless the weights have the sizes that a config promises.

    It is asked before a model is built, which a wrong number could make enormous.
    """
    multiple = config.get("vocab_multiple", 1)
    rows = -(-config["vocab_size"] // multiple) * multiple  # with the padding of chapter 05
    for table, length in (("wte", rows), ("wpe", config["block_size"])):
        tensor = state.get(f"transformer.{table}.weight")
        if tensor is None or tensor.shape != (length, config["n_embd"]):
            raise UserError(f"{where}: {table} does not have the shape that its config promises")
    layers = {name.split(".")[2] for name in state if name.startswith("transformer.h.")}
    if len(layers) != config["n_layer"]:
        sizes = f"{len(layers)} blocks, its config promises {config['n_layer']}"
        raise UserError(f"{where}: the weights have {sizes}")
