"""Write documents into token shards; can be resumed after a kill."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nanogpt_lib.shards import SHARD_TOKENS, write_shard
from nanogpt_lib.support.datasets import write_meta
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import make_folder, write_json
from nanogpt_lib.support.shard_files import check_shard


@dataclass
class Progress:
    """What a recipe needs to resume after a kill; saved as progress.json."""

    plan: dict  # a folder started with a different plan is refused
    shards: list[dict] = field(default_factory=list)  # written so far, in order
    position: object = None  # the document in which the next shard begins
    skip: int = 0  # how many of its tokens are already written
    meta: dict | None = None  # set once every document is written


def read_progress(folder: Path, plan: dict) -> Progress:
    """Read progress.json of a killed recipe and check its shards; without one, start afresh.

    Raises UserError if the folder holds another dataset: nothing is overwritten.
    """
    make_folder(folder)
    path, other = folder / "progress.json", "remove it or choose another --out"
    if not path.exists():
        if (folder / "meta.json").exists():
            raise UserError(f"{folder}: already a finished dataset; {other}")
        return Progress(plan)
    try:
        progress = Progress(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: damaged; {other}") from error
    if progress.plan != plan:
        raise UserError(f"{folder}: started from other files or with another shard size; {other}")
    for shard in progress.shards:
        check_shard(folder, shard)
    return progress


def by_split(shards: list[dict]) -> dict[str, list[dict]]:
    """Group the shards' entries into train and val by file name."""
    names = ("train", "val")
    return {n: [shard for shard in shards if shard["file"].startswith(n)] for n in names}


def write_pending(folder: Path, pending: dict[str, list[np.ndarray]], shards: list[dict]) -> None:
    """Write the pending pieces as the next shard of their split; append its entry to `shards`."""
    for split, pieces in pending.items():
        if pieces:
            path = folder / f"{split}_{len(by_split(shards)[split]):06d}.npy"
            shards.append(write_shard(path, np.concatenate(pieces)))
            pieces.clear()


class ShardWriter:
    """Cut a stream of documents into shards; can be resumed after a kill.

    The first val_tokens tokens become the validation shard, the rest training shards. To resume,
    begin with the document at `progress.position`, which can be any JSON value.
    """

    def __init__(self, folder: Path, val_tokens: int, shard_tokens=SHARD_TOKENS, source: str = ""):
        self.folder, self.val_tokens, self.shard_tokens = Path(folder), val_tokens, shard_tokens
        plan = {"source": source, "val_tokens": val_tokens, "shard_tokens": shard_tokens}
        self.progress = read_progress(self.folder, plan)
        self.skip = self.progress.skip
        self.pending = {"val": [], "train": []}  # pieces not yet on disk
        self.filled = 0  # tokens in the shard being filled

    def add(self, position, tokens: np.ndarray, held_out: bool = False) -> None:
        """Append one document; if held_out, all of it goes to the validation split."""
        done, self.skip = self.skip, 0
        if held_out:
            if not done:  # otherwise already in a shard
                self.pending["val"].append(tokens)
            if sum(piece.size for piece in self.pending["val"]) >= self.shard_tokens:
                self.flush(position, tokens.size)
            return
        while done < tokens.size:
            first = self.val_tokens > 0 and not self.progress.shards
            capacity = self.val_tokens if first else self.shard_tokens
            piece = tokens[done : done + capacity - self.filled]
            self.pending["val" if first else "train"].append(piece)
            self.filled, done = self.filled + piece.size, done + piece.size
            if self.filled == capacity:
                self.flush(position, done)

    def flush(self, position, skip: int, meta: dict | None = None) -> None:
        """Write what is pending, then record where the next shard begins."""
        write_pending(self.folder, self.pending, self.progress.shards)
        self.filled = 0
        self.progress.position, self.progress.skip, self.progress.meta = position, skip, meta
        write_json(self.folder / "progress.json", vars(self.progress))

    def close(self, meta: dict) -> dict:
        """Write the last, shorter shard and meta.json; return the meta."""
        if self.progress.meta is None:
            self.flush(None, 0, meta)
        meta = write_meta(self.folder, self.progress.meta, by_split(self.progress.shards))
        (self.folder / "progress.json").unlink(missing_ok=True)
        return meta
