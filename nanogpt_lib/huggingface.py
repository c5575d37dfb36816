"""Write one of our models as a Hugging Face folder, which transformers can load.

    python nanogpt_lib/huggingface.py runs/gpt2-124m my-gpt2 --license mit    with a model card

or from Python:

    from nanogpt_lib import load_model, save_huggingface

    model, tokenizer = load_model("runs/gpt2-124m")
    save_huggingface("my-gpt2", vars(model.config), model.state_dict(), tokenizer)
"""

if __name__ == "__main__" and not __package__:  # run by path: import from the repository
    import sys
    from pathlib import Path

    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

import json
import re
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from nanogpt_lib.load import load_model
from nanogpt_lib.model import GPT, count_parameters
from nanogpt_lib.model_card import model_card
from nanogpt_lib.pretrained import to_huggingface
from nanogpt_lib.support.cli import OneLineParser, run_program
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


def main(argv: list[str] | None = None) -> None:
    """Export a run, with a model card made from its settings, its log and its scores."""
    parser = OneLineParser(
        prog="huggingface.py", description="Export a run as a Hugging Face folder with a card."
    )
    parser.add_argument("run", type=Path, help="the folder of a run of train.py")
    parser.add_argument("folder", type=Path, help="where to write; must not exist yet")
    parser.add_argument(
        "--license",
        default="unknown",
        help="the licence you give the weights, e.g. mit (%(default)s)",
    )
    args = parser.parse_args(argv)
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", args.license):
        parser.error("--license is an identifier such as mit or cc-by-4.0")
    if args.folder.exists():
        raise UserError(f"{args.folder}: exists already; choose another folder")
    model, tokenizer = load_model(args.run)
    if type(model) is not GPT:
        raise UserError(f"{args.run}: transformers has no architecture like this model's")
    card = model_card(args.run, args.folder.name, count_parameters(model), args.license)
    save_huggingface(args.folder, vars(model.config), model.state_dict(), tokenizer)
    (args.folder / "README.md").write_text(card, encoding="utf-8", newline="\n")
    print(f"{args.folder}: weights, tokenizer and README.md, the model card; read it through")


if __name__ == "__main__":
    run_program("huggingface.py", main)
