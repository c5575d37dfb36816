"""Make a dataset of one text: the first nine tenths for training, the rest for validation."""

import argparse
import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nanogpt_lib.recipes.sources import refuse_other_dataset, verify
from nanogpt_lib.shards import write_shard
from nanogpt_lib.support.cli import OneLineParser
from nanogpt_lib.support.datasets import write_meta
from nanogpt_lib.support.files import make_folder
from nanogpt_lib.support.places import DATA
from nanogpt_lib.tokenizer import CharTokenizer, GPT2Tokenizer


def text_parser(prog: str, docstring: str) -> OneLineParser:
    """The options that the recipes for text share; --help begins with the program's docstring."""
    parser = OneLineParser(prog=prog, description=docstring)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    kinds = "characters (the default) or GPT-2's tokens"
    parser.add_argument("--tokenizer", choices=["char", "gpt2"], default="char", help=kinds)
    default = "data/NAME of this repository, data/NAME_gpt2 for GPT-2's tokens"
    parser.add_argument("--out", type=Path, help=f"folder for the dataset (default: {default})")
    parser.add_argument("--verify", action="store_true", help="check the dataset in OUT")
    return parser


def default_out(name: str, tokenizer: str) -> Path:
    """The default of --out."""
    return DATA / (name if tokenizer == "char" else f"{name}_gpt2")


def text_recipe(name: str, docstring: str, source: str, collect: Callable[[], str]) -> None:
    """The main() of a recipe for a single text: first 90 % for training, the rest validation."""
    args = text_parser(f"{name}.py", docstring).parse_args()
    out = args.out or default_out(name, args.tokenizer)
    if args.verify:
        return verify(out)
    make_folder(out)
    refuse_other_dataset(out, name, args.tokenizer)
    try:
        text = collect()
    except BaseException:
        with contextlib.suppress(OSError):  # not empty: what is there stays
            out.rmdir()
        raise
    tokenizer = CharTokenizer(text) if args.tokenizer == "char" else GPT2Tokenizer()
    cut = int(0.9 * len(text))
    train, val = (np.array(tokenizer.encode(part)) for part in (text[:cut], text[cut:]))
    meta = {
        "name": name,
        "source": source,
        "tokenizer": tokenizer.describe(),
        "vocab_size": tokenizer.vocab_size,
    }
    write_splits(out, meta, train, val)
    print(
        f"{len(text):,} characters → {train.size:,} training and {val.size:,} validation tokens, "
        f"vocabulary {tokenizer.vocab_size:,}, in {out}"
    )
    return None


def write_splits(folder: Path, meta: dict, train: np.ndarray, val: np.ndarray) -> dict:
    """Write a small dataset that is already split: one shard per split, and meta.json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    splits = {
        "train": [write_shard(folder / "train_000000.npy", train)],
        "val": [write_shard(folder / "val_000000.npy", val)],
    }
    return write_meta(folder, meta, splits)
