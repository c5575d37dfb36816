"""Read a Hugging Face GPT-2 checkpoint into a plain config and state dict; write ours as one.

Exported from notebooks/01_checkpoint.ipynb; edit the notebook, not this file.
"""

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nanogpt_lib.config import UserError

GPT2_SIZES = {
    "gpt2": dict(n_layer=12, n_head=12, n_embd=768),  # 124M parameters
    "gpt2-medium": dict(n_layer=24, n_head=16, n_embd=1024),  # 350M
    "gpt2-large": dict(n_layer=36, n_head=20, n_embd=1280),  # 774M
    "gpt2-xl": dict(n_layer=48, n_head=25, n_embd=1600),  # 1558M
}


def hub_file(repo: str, filename: str) -> Path | None:
    """Download one file of a hub repository (or find it in the cache); None if it has no such file.

    Obeys HF_ENDPOINT, HF_HUB_OFFLINE and the cache settings of huggingface_hub.
    Raises UserError when the hub cannot be reached and the file is not cached.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    try:  # one question without retries, so that nobody without internet waits half a minute
        get_hf_file_metadata(hf_hub_url(repo, filename))
        reachable = True
    except HfHubHTTPError:  # an answer too; the download meets it again and says what it means
        reachable = True
    except Exception:  # no network, or HF_HUB_OFFLINE: what the cache holds must do
        reachable = False
    try:
        return Path(hf_hub_download(repo, filename, local_files_only=not reachable))
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{repo}: not in the local cache and the hub cannot be reached; "
            "connect once, or give a folder with config.json and model.safetensors"
        ) from error
    except EntryNotFoundError:
        return None
    except Exception as error:  # a missing repository, a broken transfer, a proxy that refuses
        first = str(error).strip().split("\n")[0]
        raise UserError(f"{repo}: {filename} could not be downloaded ({first})") from error


def find_file(source: str, filename: str) -> Path | None:
    """Locate one file of a checkpoint: in a local folder, in NANOGPT_MIRROR, or on the hub.

    NANOGPT_MIRROR is a folder here; a hub of your own, under a URL, is named by HF_ENDPOINT.
    """
    mirror = os.environ.get("NANOGPT_MIRROR", "")
    for folder in (Path(source), Path(mirror) / source):
        if folder.is_dir():
            path = folder / filename
            return path if path.exists() else None
    return hub_file(f"openai-community/{source}" if source in GPT2_SIZES else source, filename)


# OpenAI's code applied these as a 1-dimensional convolution, so they are stored (in, out);
# nn.Linear keeps (out, in).
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


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
        **{key: raw.get(key, GPT2_SIZES["gpt2"][key]) for key in ("n_layer", "n_head", "n_embd")},
    }


def load_pretrained(source: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """Read a GPT-2 checkpoint: gpt2, gpt2-medium, gpt2-large, gpt2-xl, a hub name or a folder.

    Returns the fields of a GPTConfig as a dict, and a float32 state dict with the names and shapes
    of model.GPT: Conv1D weights transposed to nn.Linear's (out, in), mask buffers left out, lm_head
    the very tensor of wte. Raises UserError if a file is missing, cut short or of another model.
    """
    config = read_config(source)
    state = {}
    for name, tensor in read_weights(source).items():
        if name.endswith((".attn.bias", ".attn.masked_bias")) or name == "lm_head.weight":
            continue
        name = "transformer." + name.removeprefix("transformer.")
        tensor = tensor.t().contiguous() if name.endswith(TRANSPOSED) else tensor
        state[name] = tensor.float()
    wte = state.get("transformer.wte.weight")
    if wte is None or wte.shape != (config["vocab_size"], config["n_embd"]):
        raise UserError(f"{source}: wte does not have the shape that config.json promises")
    state["lm_head.weight"] = wte
    return config, state


def crop_block_size(config: dict, state: dict, block_size: int) -> None:
    """Shorten the context in place: a shorter one needs only the first rows of wpe."""
    if block_size > config["block_size"]:
        raise UserError(f"block_size {block_size} is over the model's {config['block_size']}")
    config["block_size"] = block_size
    state["transformer.wpe.weight"] = state["transformer.wpe.weight"][:block_size].clone()


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


def huggingface_tensors(config: dict, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict of model.GPT as model.safetensors keeps it; the inverse of load_pretrained.

    Padding rows of wte go; biases that a bias-free model lacks become zeros: equal logits.
    """
    tensors = {}
    for name, tensor in state.items():
        if name != "lm_head.weight":  # tied: transformers makes it from wte
            tensor = tensor.detach().float().cpu()
            tensors[name] = (tensor.t() if name.endswith(TRANSPOSED) else tensor).contiguous()
    for name in [n for n in tensors if n.endswith(".weight") and "wte" not in n and "wpe" not in n]:
        bias = name.removesuffix("weight") + "bias"
        tensors.setdefault(bias, torch.zeros(tensors[name].shape[-1]))
    wte = tensors["transformer.wte.weight"]
    tensors["transformer.wte.weight"] = wte[: config["vocab_size"]].clone()
    return tensors


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


def save_huggingface(
    folder: str | Path, config: dict, state: dict[str, torch.Tensor], tokenizer=None
) -> None:
    """Write a folder that `transformers`, and all that builds on it, loads; the logits are equal.

    `config` holds the fields of GPTConfig, `state` a state dict of model.GPT. With a GPT2Tokenizer
    or a CharTokenizer the tokenizer's files go along. Raises UserError if it is not the model's, or
    if `folder` holds a run.
    """
    folder = Path(folder)
    if (folder / "checkpoints").exists():
        raise UserError(
            f"{folder}: a run lives here and needs its config.json; take another folder"
        )
    texts = {"config.json": json.dumps(huggingface_config(config), indent=2) + "\n"}
    if tokenizer is not None:
        if tokenizer.vocab_size != config["vocab_size"]:
            sizes = f"{tokenizer.vocab_size} tokens, the model {config['vocab_size']}"
            raise UserError(f"the tokenizer has {sizes}")
        bpe = tokenizer.describe()["name"] == "gpt2"
        texts |= bpe_files(tokenizer) if bpe else char_files(tokenizer)
        kind = "GPT2Tokenizer" if bpe else "PreTrainedTokenizerFast"
        about = {"tokenizer_class": kind, "model_max_length": config["block_size"]}
        texts["tokenizer_config.json"] = json.dumps(about, indent=2) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = huggingface_tensors(config, state)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
