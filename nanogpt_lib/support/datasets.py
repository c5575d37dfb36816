"""meta.json of a dataset folder: writing it, reading it, and verifying the shards."""

import json
import re
from pathlib import Path

from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import file_sha256, read_sealed, seal, write_json
from nanogpt_lib.support.foreign_shards import foreign_meta
from nanogpt_lib.support.shard_files import check_ids, check_shard


def write_meta(folder: Path, meta: dict, splits: dict[str, list[dict]]) -> dict:
    """Write meta.json: `meta` (name, source, tokenizer, vocab_size) and the shards by split."""
    for split in ("train", "val"):
        if sum(shard["tokens"] for shard in splits[split]) < 2:  # one input, one target
            raise UserError(f"{folder}: no tokens left for the {split} split; too little text")
    meta = {"format": 2, "dtype": "uint16", **meta, "splits": splits}
    write_json(Path(folder) / "meta.json", seal(meta))
    return meta


def is_whole(meta: dict) -> bool:
    """Whether a meta.json has every required field and names no file outside its folder."""
    shards = meta["splits"]["train"] + meta["splits"]["val"]
    named = all(re.fullmatch(r"\w[\w.-]*\.(npy|bin)", s["file"]) for s in shards)
    counts = [meta["vocab_size"], *(s["tokens"] for s in shards)]
    return (
        named
        and meta["format"] in (1, 2)
        and all(type(count) is int and count >= 0 for count in counts)
        and meta["vocab_size"] > 0
        and isinstance(meta["tokenizer"], dict)
    )


def read_meta(folder: str | Path) -> dict:
    """Read and check meta.json of a dataset folder; raises UserError that says what is wrong.

    For a folder of nanoGPT or llm.c, which has none, returns what it would contain.
    """
    folder, path = Path(folder), Path(folder) / "meta.json"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such data folder; make it with python data/NAME.py")
    if not path.exists():
        unfinished = (folder / "progress.json").exists()
        meta = None if unfinished else foreign_meta(folder)
        if meta is None:
            raise UserError(
                f"{folder}: no meta.json, so not a finished dataset; run its recipe again"
            )
        return meta
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        if "sha256" in meta or meta["format"] != 1:  # format 1 had no SHA-256
            meta = read_sealed(path)
        whole = is_whole(meta)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise UserError(f"{path}: damaged or in another format; run the recipe again")
    return meta


def check_split(folder: Path, split: str, shards: list[dict]) -> None:
    """Open every shard of a split once; raises UserError that names the problem.

    A window needs at least two tokens: one input and one target.
    """
    if not shards:
        raise UserError(f"{folder}: has no {split} split")
    tokens = sum(check_shard(folder, shard).size for shard in shards)
    if tokens < 2:
        raise UserError(f"{folder}: the {split} split has {tokens} token, too few; add text")


def verify_shards(folder: str | Path, part: int = 0, parts: int = 1) -> int:
    """Read every shard; check its SHA-256 (if meta.json has one) and that every id is in range.

    With several processes, each verifies every `parts`-th shard, starting at number `part`.
    Returns the number of tokens. Raises UserError that names the shard and, for an id, its offset.
    """
    folder, meta, total = Path(folder), read_meta(folder), 0
    for shard in (meta["splits"]["train"] + meta["splits"]["val"])[part::parts]:
        tokens, path = check_shard(folder, shard), folder / shard["file"]
        if "sha256" in shard and file_sha256(path) != shard["sha256"]:
            raise UserError(f"{path}: damaged (SHA-256 differs)")
        for first in range(0, tokens.size, 1 << 24):
            check_ids(path, tokens[first : first + (1 << 24)], meta["vocab_size"], first)
        total += tokens.size
    return total
