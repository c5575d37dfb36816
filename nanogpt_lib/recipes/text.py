"""Make a dataset of one text: the first nine tenths for training, the rest for validation."""

import argparse
import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nanogpt_lib.arguments import found_path
from nanogpt_lib.load import open_model
from nanogpt_lib.recipes.sources import refuse_other_dataset, verify
from nanogpt_lib.shards import write_shard
from nanogpt_lib.support.cli import OneLineParser
from nanogpt_lib.support.datasets import write_meta
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import make_folder
from nanogpt_lib.support.places import DATA
from nanogpt_lib.tokenizer import CharTokenizer, GPT2Tokenizer


def text_parser(prog: str, docstring: str) -> OneLineParser:
    """The options that the recipes for text share; --help begins with the program's docstring."""
    parser = OneLineParser(prog=prog, description=docstring)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    kinds = (
        "char: characters (the default); gpt2: GPT-2's tokens; or a model (a run, a folder, a name "
        "on the hub) that is to be fine-tuned: its tokens, and any characters it does not know"
    )
    parser.add_argument("--tokenizer", default="char", metavar="char|gpt2|MODEL", help=kinds)
    default = "data/NAME of this repository, data/NAME_gpt2 for GPT-2's tokens"
    parser.add_argument("--out", type=Path, help=f"folder for the dataset (default: {default})")
    parser.add_argument("--verify", action="store_true", help="check the dataset in OUT")
    return parser


def default_out(name: str, tokenizer: str) -> Path:
    """The default of --out."""
    return DATA / (name if tokenizer == "char" else f"{name}_{Path(tokenizer).name}")


def known_tokenizer(choice: str) -> GPT2Tokenizer | CharTokenizer | None:
    """What --tokenizer names; None: characters, which depend on the text."""
    if choice in ("char", "gpt2"):
        return GPT2Tokenizer() if choice == "gpt2" else None
    tokenizer = open_model(found_path(choice))[1]
    if tokenizer is None:
        raise UserError(f"--tokenizer {choice}: that model's tokenizer is unknown")
    return tokenizer


def for_text(
    known: GPT2Tokenizer | CharTokenizer | None, characters: str
) -> GPT2Tokenizer | CharTokenizer:
    """The known tokenizer with any further characters of the text, or one of these alone."""
    if isinstance(known, GPT2Tokenizer):
        return known
    return CharTokenizer(characters + (known.characters if known else ""))


def text_recipe(name: str, docstring: str, source: str, collect: Callable[[], str]) -> None:
    """The main() of a recipe for a single text: first 90 % for training, the rest validation."""
    args = text_parser(f"{name}.py", docstring).parse_args()
    out = args.out or default_out(name, args.tokenizer)
    if args.verify:
        return verify(out)
    make_folder(out)
    known = known_tokenizer(args.tokenizer)
    refuse_other_dataset(out, name, known.describe()["name"] if known else "char")
    try:
        text = collect()
    except BaseException:
        with contextlib.suppress(OSError):  # not empty: what is there stays
            out.rmdir()
        raise
    tokenizer = for_text(known, text)
    cut = int(0.9 * len(text))
    train, val = (np.array(tokenizer.encode(part)) for part in (text[:cut], text[cut:]))
    write_splits(out, make_meta(name, source, tokenizer), train, val)
    print(
        f"{len(text):,} characters → {train.size:,} training and {val.size:,} validation tokens, "
        f"vocabulary {tokenizer.vocab_size:,}, in {out}"
    )
    return None


def make_meta(name: str, source: str, tokenizer: GPT2Tokenizer | CharTokenizer) -> dict:
    """What meta.json says of a dataset, apart from its shards."""
    return {
        "name": name,
        "source": source,
        "tokenizer": tokenizer.describe(),
        "vocab_size": tokenizer.vocab_size,
    }


def write_splits(folder: Path, meta: dict, train: np.ndarray, val: np.ndarray) -> dict:
    """Write a small dataset that is already split: one shard per split, and meta.json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    splits = {
        "train": [write_shard(folder / "train_000000.npy", train)],
        "val": [write_shard(folder / "val_000000.npy", val)],
    }
    return write_meta(folder, meta, splits)
