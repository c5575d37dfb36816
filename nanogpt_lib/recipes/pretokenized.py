"""Published GPT-2 tokens of FineWeb and FineWeb-Edu, used unchanged: llm.c's .bin shards.

Each file is downloaded and checked: its length and SHA-256 against those the hub lists, then its
header and ids. After a kill the same command continues. TokenStream reads the files directly.
"""

import shutil
from pathlib import Path

import numpy as np

from nanogpt_lib.recipes.shard_writer import read_progress
from nanogpt_lib.recipes.sources import Source, dataset_meta, hub_source, is_finished
from nanogpt_lib.support.datasets import write_meta
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import file_sha256, in_units, make_folder, require_space, write_json
from nanogpt_lib.support.foreign_shards import FOREIGN
from nanogpt_lib.support.shard_files import check_ids, open_shard
from nanogpt_lib.tokenizer import GPT2Tokenizer

# Made by the authors of llm.c (karpathy) and modded-nanogpt (kjj0), 100 million tokens per file,
# file 0 for validation. Where no commit is pinned, the newest is taken.
PRETOKENIZED = {
    ("fineweb-edu", "10BT"): ("kjj0/finewebedu10B-gpt2", "main"),  # 99 training shards
    ("fineweb-edu", "100BT"): (
        "karpathy/fineweb-edu-100B-gpt2-token-shards",
        "a33f75d78c7f74236fb03754ec1eb3cc77507d64",
    ),
    ("fineweb", "10BT"): ("kjj0/fineweb10B-gpt2", "889765ea1f903759787add96995d81171b632d0c"),
    ("fineweb", "100BT"): ("kjj0/fineweb100B-gpt2", "main"),  # 1,030 training shards
}


def token_source(
    dataset: str, sample: str, out: Path, revision: str | None, files: int | None
) -> Source:
    """The validation shard and the first `files` training shards (all of them by default)."""
    repo, pinned = PRETOKENIZED[dataset, sample]
    source = hub_source(repo, "", revision or pinned, out, keep=True, suffix=".bin")
    named = [(FOREIGN.fullmatch(name), size) for name, size in source.files]
    val = [(m[0], size) for m, size in named if m and m[2] == "val"]
    train = [(m[0], size) for m, size in named if m and m[2] == "train"]
    source.files = val + train[:files]
    return source


def check_file(path: Path, name: str, expected_sha256: str | None) -> dict:
    """Check a downloaded shard's header, length and ids; return its entry for meta.json."""
    try:
        tokens = open_shard(path)
        for first in range(0, tokens.size, 1 << 24):
            part = np.asarray(tokens[first : first + (1 << 24)])
            check_ids(path, part, GPT2Tokenizer.vocab_size, first)
    except UserError:
        path.unlink()  # so that the same command downloads it again
        raise
    return {"file": name, "tokens": tokens.size, "sha256": expected_sha256 or file_sha256(path)}


def download_shards(source: Source, out: Path, name: str) -> None:
    """Fetch and check every file of the source, then write meta.json."""
    make_folder(out)
    if is_finished(out, source, name):
        return
    progress = read_progress(out, {"source": source.fingerprint})
    done = progress.shards
    print(f"{source.title}: {len(source.files)} shards, {len(done)} of them already here")
    needed = sum(size for _, size in source.files[len(done) :])
    require_space(out, needed, f"{in_units(needed)} to download")
    write_json(out / "progress.json", vars(progress))  # marks the dataset as unfinished
    for file, _ in source.files[len(done) :]:
        done.append(check_file(source.fetch(file), file, source.sums.get(file)))
        write_json(out / "progress.json", vars(progress))
        print(f"{file}: {done[-1]['tokens']:,} tokens, SHA-256 matches")
    splits = {"train": [], "val": []}
    for shard in done:
        splits[FOREIGN.fullmatch(shard["file"])[2]].append(shard)
    write_meta(out, dataset_meta(source, name), splits)
    (out / "progress.json").unlink()
    shutil.rmtree(out / ".cache", ignore_errors=True)  # huggingface_hub's metadata
    print(f"{sum(shard['tokens'] for shard in done):,} tokens in {out}")
