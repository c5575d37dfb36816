"""Token shards: flat uint16 files that are memory-mapped, and the meta.json that describes them.

Exported from notebooks/08_fineweb.ipynb; edit the notebook, not this file.

A dataset folder holds train_000000.npy, train_000001.npy, …, val_000000.npy and, written last,
meta.json: the tokenizer, the source, and for every shard its tokens and SHA-256. Folders made by
nanoGPT, llm.c and the lecture's script have no meta.json and are read unchanged.
"""

import hashlib
import io
from functools import lru_cache
from pathlib import Path

import numpy as np

from nanogpt_lib.support.datasets import check_split, read_meta
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import write_atomically
from nanogpt_lib.support.shard_files import check_ids, check_shard

SHARD_TOKENS = 100_000_000  # 200 MB as uint16, as in the lecture
OPEN_SHARDS = 64  # open at a time, per split: macOS allows a process 256 files


def document_row(ids: list[int] | np.ndarray, eot: int) -> np.ndarray:
    """The uint16 tokens of one document, eot first; raises UserError if an id does not fit."""
    ids = np.asarray(ids)
    if ids.size and not 0 <= ids.min() <= ids.max() < 2**16:
        raise UserError("token ids must be from 0 to 65535 to fit uint16; use a smaller vocabulary")
    row = np.empty(ids.size + 1, dtype=np.uint16)
    row[0], row[1:] = eot, ids
    return row


def write_shard(path: Path, tokens: np.ndarray) -> dict:
    """Write tokens as a uint16 .npy file; return its entry for meta.json."""
    whole = tokens.dtype.kind in "iu"
    if not whole or (tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < 2**16):
        raise UserError(f"{path}: token ids must be integers from 0 to 65535 to fit uint16")
    buffer = io.BytesIO()
    np.save(buffer, tokens.astype(np.uint16, copy=False))
    write_atomically(path, buffer.getbuffer())
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    return {"file": path.name, "tokens": int(tokens.size), "sha256": digest}


class TokenStream:
    """The shards of one split, concatenated into one long sequence of tokens on disk."""

    def __init__(self, folder: str | Path, split: str):
        meta = read_meta(folder)
        folder, shards = Path(folder), meta["splits"][split]
        check_split(folder, split, shards)
        self.folder, self.shards, self.vocab_size = folder, shards, meta["vocab_size"]
        self.ends = np.cumsum([shard["tokens"] for shard in shards], dtype=np.int64)
        # a shard is mapped when it is read; the least recently used one is then closed
        self.map_shard = lru_cache(OPEN_SHARDS)(lambda number: check_shard(folder, shards[number]))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, window: slice) -> np.ndarray:
        """stream[start:stop], as for an array; see `read`."""
        start, stop, _ = window.indices(len(self))
        return self.read(start, max(0, stop - start))

    def read(self, start: int, length: int) -> np.ndarray:
        """The `length` tokens from `start` as int64; they may span several shards.

        Raises UserError that names shard and offset if an id is outside the vocabulary.
        """
        row, done = np.empty(length, dtype=np.int64), 0
        number = int(np.searchsorted(self.ends, start, side="right"))
        offset = start - (int(self.ends[number - 1]) if number else 0)
        while done < length:
            piece = self.map_shard(number)[offset : offset + length - done]
            check_ids(self.folder / self.shards[number]["file"], piece, self.vocab_size, offset)
            row[done : done + piece.size] = piece
            number, offset, done = number + 1, 0, done + piece.size
        return row
