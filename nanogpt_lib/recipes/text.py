"""One text into a dataset: the first nine tenths for training, the rest for validation."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from nanogpt_lib.shards import write_shard
from nanogpt_lib.support.cli import OneLineParser, run_program
from nanogpt_lib.support.datasets import write_meta
from nanogpt_lib.tokenizer import CharTokenizer, GPT2Tokenizer

DATA = Path(__file__).resolve().parents[2] / "data"


def text_recipe(name: str, source: str, collect: Callable[[], str]) -> None:
    """The command line of a recipe made from one text: first 90 % for training, rest validation."""
    parser = OneLineParser(prog=f"{name}.py", description=f"Make the dataset {name}: {source}.")
    parser.add_argument("--tokenizer", choices=["char", "gpt2"], default="char")
    parser.add_argument(
        "--out", type=Path, help=f"folder (default: data/{name} or data/{name}_gpt2)"
    )
    args = parser.parse_args()

    def job() -> None:
        text = collect()
        tokenizer = CharTokenizer(text) if args.tokenizer == "char" else GPT2Tokenizer()
        out = args.out or DATA / (name if args.tokenizer == "char" else f"{name}_gpt2")
        cut = int(0.9 * len(text))
        train, val = (np.array(tokenizer.encode(t)) for t in (text[:cut], text[cut:]))
        meta = {
            "name": name,
            "source": source,
            "tokenizer": tokenizer.describe(),
            "vocab_size": tokenizer.vocab_size,
        }
        write_splits(out, meta, train, val)
        print(
            f"{len(text):,} characters → {train.size:,} training and {val.size:,} validation tokens"
            f", vocabulary {tokenizer.vocab_size:,}, in {out}"
        )

    run_program(f"{name}.py", job, goes_on="the same command goes on", outlives_terminal=True)


def write_splits(folder: Path, meta: dict, train: np.ndarray, val: np.ndarray) -> dict:
    """Write a small dataset that is already split: one shard each, and meta.json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    splits = {
        "train": [write_shard(folder / "train_000000.npy", train)],
        "val": [write_shard(folder / "val_000000.npy", val)],
    }
    return write_meta(folder, meta, splits)
