"""Write one of our models as a Hugging Face folder, which transformers can load.

from nanogpt_lib import load_model, save_huggingface

model, tokenizer = load_model("runs/gpt2-124m")
save_huggingface("my-gpt2", vars(model.config), model.state_dict(), tokenizer)
"""

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from nanogpt_lib.pretrained import to_huggingface
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.huggingface import huggingface_config
from nanogpt_lib.support.tokenizer_files import tokenizer_files


def save_huggingface(
    folder: str | Path, config: dict, state: dict[str, Tensor], tokenizer=None
) -> None:
    """Write a folder that `transformers` loads, with the same logits.

    `config` holds the fields of GPTConfig, `state` a state dict of model.GPT. With a GPT2Tokenizer
    or a CharTokenizer, its files are written too. Raises UserError if the tokenizer does not fit
    the model, or if `folder` holds a run.
    """
    folder = Path(folder)
    if (folder / "checkpoints").exists():
        raise UserError(
            f"{folder}: holds a run, whose config.json is needed; choose another folder"
        )
    about, texts = huggingface_config(config), {}
    if tokenizer is not None:
        if tokenizer.vocab_size != config["vocab_size"]:
            sizes = f"{tokenizer.vocab_size} tokens; the model has {config['vocab_size']}"
            raise UserError(f"the tokenizer has {sizes}")
        about |= {"bos_token_id": tokenizer.eot, "eos_token_id": tokenizer.eot}
        texts |= tokenizer_files(tokenizer, config["block_size"])
    texts["config.json"] = json.dumps(about, indent=2) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(to_huggingface(config, state), folder / "model.safetensors", {"format": "pt"})
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
