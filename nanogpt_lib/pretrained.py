"""Read a Hugging Face GPT-2 checkpoint into a plain config and state dict; write ours as one.

Exported from notebooks/01_checkpoint.ipynb; edit the notebook, not this file.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.huggingface import (
    bpe_files,
    char_files,
    huggingface_config,
    read_config,
    read_weights,
)

GPT2_SIZES = {
    "gpt2": dict(n_layer=12, n_head=12, n_embd=768),  # 124M parameters
    "gpt2-medium": dict(n_layer=24, n_head=16, n_embd=1024),  # 350M
    "gpt2-large": dict(n_layer=36, n_head=20, n_embd=1280),  # 774M
    "gpt2-xl": dict(n_layer=48, n_head=25, n_embd=1600),  # 1558M
}


# OpenAI's code applied these as a 1-dimensional convolution, so they are stored (in, out);
# nn.Linear keeps (out, in).
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


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
