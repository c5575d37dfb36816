"""Read a Hugging Face GPT-2 checkpoint into a plain config and state dict; convert ours to one.

Exported from notebooks/01_checkpoint.ipynb; edit the notebook, not this file.
"""

import torch

from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.huggingface import check_sizes, read_config, read_weights

GPT2_SIZES = {
    "gpt2": dict(n_layer=12, n_head=12, n_embd=768),  # 124M parameters
    "gpt2-medium": dict(n_layer=24, n_head=16, n_embd=1024),  # 355M; 350M in the lecture
    "gpt2-large": dict(n_layer=36, n_head=20, n_embd=1280),  # 774M
    "gpt2-xl": dict(n_layer=48, n_head=25, n_embd=1600),  # 1558M
}


# OpenAI's code applied these as a 1-dimensional convolution, so they are stored (in, out);
# nn.Linear keeps (out, in).
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def from_huggingface(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a Hugging Face GPT-2 → float32, with the names and shapes of model.GPT.

    Conv1D weights are transposed to nn.Linear's (out, in); mask buffers and lm_head are dropped.
    """
    state = {}
    for name, tensor in tensors.items():
        if name.endswith((".attn.bias", ".attn.masked_bias")) or name == "lm_head.weight":
            continue
        name = "transformer." + name.removeprefix("transformer.")
        tensor = tensor.t().contiguous() if name.endswith(TRANSPOSED) else tensor
        state[name] = tensor.float()
    return state


def to_huggingface(config: dict, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict of model.GPT → tensors of model.safetensors; the inverse of from_huggingface.

    Padding rows of wte are dropped, and a bias-free model gets zero biases: the logits are equal.
    """
    tensors = {}
    for name, tensor in state.items():
        if name != "lm_head.weight":  # tied: transformers restores it from wte
            tensor = tensor.detach().float().cpu()
            tensors[name] = (tensor.t() if name.endswith(TRANSPOSED) else tensor).contiguous()
    for name in [n for n in tensors if n.endswith(".weight") and "wte" not in n and "wpe" not in n]:
        bias = name.removesuffix("weight") + "bias"
        tensors.setdefault(bias, torch.zeros(tensors[name].shape[-1]))
    wte = tensors["transformer.wte.weight"]
    tensors["transformer.wte.weight"] = wte[: config["vocab_size"]].clone()
    return tensors


def load_pretrained(source: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """Read a GPT-2 checkpoint: gpt2, gpt2-medium, gpt2-large, gpt2-xl, a hub name or a folder.

    Returns the fields of a GPTConfig as a dict, and a state dict of model.GPT, in which lm_head is
    wte's tensor. Raises UserError if a file is missing, truncated or from another model.
    """
    config = read_config(source)
    state = from_huggingface(read_weights(source))
    check_sizes(config, state, source)
    state["lm_head.weight"] = state["transformer.wte.weight"]
    return config, state


def crop_block_size(config: dict, state: dict, block_size: int) -> None:
    """Shorten the context in place, keeping only the first block_size rows of wpe."""
    if block_size > config["block_size"]:
        raise UserError(f"block_size {block_size} exceeds the model's {config['block_size']}")
    config["block_size"] = block_size
    state["transformer.wpe.weight"] = state["transformer.wpe.weight"][:block_size].clone()
