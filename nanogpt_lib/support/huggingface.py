"""Checkpoint folders as Hugging Face writes them; nothing in them is ever unpickled as code."""

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.hub import hub_file

OPENAI = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")  # short for openai-community/…
SMALLEST = {"n_layer": 12, "n_head": 12, "n_embd": 768}  # what an absent entry of config.json means


def find_file(source: str, filename: str) -> Path | None:
    """Locate one file of a checkpoint: in a local folder, in NANOGPT_MIRROR, or on the hub.

    NANOGPT_MIRROR is a folder here; a hub of your own, under a URL, is named by HF_ENDPOINT.
    """
    mirror = os.environ.get("NANOGPT_MIRROR", "")
    for folder in (Path(source), Path(mirror) / source):
        if folder.is_dir():
            path = folder / filename
            return path if path.exists() else None
    return hub_file(f"openai-community/{source}" if source in OPENAI else source, filename)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Load a .safetensors or PyTorch file without ever unpickling code."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a whole checkpoint file ({error})") from error
    except Exception as error:  # pickle.UnpicklingError: not a file of tensors, or not only
        raise UserError(f"{path}: refused, holds something else than tensors") from error
    if not isinstance(tensors, dict) or not all(map(torch.is_tensor, tensors.values())):
        raise UserError(f"{path}: refused, holds something else than named tensors")
    return tensors


def read_weights(source: str) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, from one file or from the parts an index lists."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if path := find_file(source, name):
            return read_tensors(path)
        if index := find_file(source, f"{name}.index.json"):
            parts = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
            tensors = {}
            for part in parts:
                if Path(part).name != part or not (path := find_file(source, part)):
                    raise UserError(f"{source}: part {part} of the checkpoint is missing")
                tensors |= read_tensors(path)
            return tensors
    raise UserError(f"{source}: neither model.safetensors nor pytorch_model.bin")


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
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if raw.get("model_type") != "gpt2":
        raise UserError(f"{source}: model_type is {raw.get('model_type')!r}, expected 'gpt2'")
    for key, values in SUPPORTED.items():
        if raw.get(key, values[0]) not in values:
            raise UserError(f"{source}: {key} is {raw[key]!r}, this model computes {values[0]!r}")
    return {
        "block_size": raw.get("n_positions", 1024),
        "vocab_size": raw.get("vocab_size", 50257),
        **{key: raw.get(key, default) for key, default in SMALLEST.items()},
    }


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


def merge_of(token: bytes, ids: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that GPT-2 merged into `token`: merge its bytes, lowest id first, down to two.

    `ids` maps every token to its id, which is also the order in which the merges were learned.
    """
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [a + b for a, b in zip(parts[:-1], parts[1:], strict=True)]
        first = min(range(len(pairs)), key=lambda i: ids.get(pairs[i], len(ids)))
        parts[first : first + 2] = [pairs[first]]
    return parts[0], parts[1]


def bpe_files(tokenizer) -> dict[str, str]:
    """vocab.json and merges.txt of a GPT2Tokenizer, byte for byte as OpenAI published them."""
    tokens = [tokenizer.decode_bytes([i]) for i in range(tokenizer.eot)]
    ids = {token: i for i, token in enumerate(tokens)}
    # in these files every byte is a character that can be seen: itself, or one from U+0100 on
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shown = {b: chr(b) for b in seen}
    shown |= {b: chr(256 + n) for n, b in enumerate(b for b in range(256) if b not in seen)}

    def show(token: bytes) -> str:
        return "".join(shown[b] for b in token)

    vocab = {show(token): i for i, token in enumerate(tokens)} | {"<|endoftext|>": tokenizer.eot}
    merges = [" ".join(map(show, merge_of(token, ids))) for token in tokens[256:]]
    return {
        "vocab.json": json.dumps(vocab),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]),
    }


def char_files(tokenizer) -> dict[str, str]:
    """tokenizer.json of a CharTokenizer: cut between all characters, look each of them up."""
    cut = {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated"}
    vocab = {character: i for i, character in enumerate(tokenizer.characters)}
    whole = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {**cut, "invert": False},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": ""},
        "decoder": {"type": "Fuse"},  # join without blanks
    }
    return {"tokenizer.json": json.dumps(whole)}
