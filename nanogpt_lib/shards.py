"""Token shards: flat uint16 files that a run maps into memory, and the meta.json beside them.

Exported from notebooks/08_fineweb.ipynb; edit the notebook, not this file.

A dataset folder holds train_000000.npy, train_000001.npy, …, val_000000.npy and, written last,
meta.json: the tokenizer, the source, and for every shard its tokens and SHA-256. Folders made by
nanoGPT, llm.c and the lecture's script have no meta.json and are read as they are.
"""

import hashlib
import io
from pathlib import Path

import numpy as np

from nanogpt_lib.support.datasets import read_meta
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import write_atomically
from nanogpt_lib.support.shard_files import check_ids, check_shard

SHARD_TOKENS = 100_000_000  # 200 MB as uint16, as in the lecture


def document_row(ids: list[int] | np.ndarray, eot: int) -> np.ndarray:
    """The uint16 tokens of one document, eot first; raises UserError if an id does not fit."""
    ids = np.asarray(ids)
    if np.max(ids, initial=0) >= 2**16:
        raise UserError("token ids must be below 65536 to fit uint16; take a smaller vocabulary")
    row = np.empty(ids.size + 1, dtype=np.uint16)
    row[0], row[1:] = eot, ids
    return row


def write_shard(path: Path, tokens: np.ndarray) -> dict:
    """Write tokens as a uint16 .npy file; return its line for meta.json."""
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < 2**16:
        raise UserError(f"{path}: token ids must be between 0 and 65535 to fit uint16")
    buffer = io.BytesIO()
    np.save(buffer, tokens.astype(np.uint16, copy=False))
    write_atomically(path, buffer.getbuffer())
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    return {"file": path.name, "tokens": int(tokens.size), "sha256": digest}


class TokenStream:
    """The shards of one split end to end, as one long row of tokens on the disk."""

    def __init__(self, folder: str | Path, split: str):
        meta = read_meta(folder)
        self.folder = Path(folder)
        self.vocab_size = meta["vocab_size"]
        self.shards = meta["splits"][split]
        if not self.shards:
            raise UserError(f"{folder}: has no {split} split")
        self.arrays = [check_shard(self.folder, shard) for shard in self.shards]
        self.ends = np.cumsum([array.size for array in self.arrays])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens start … start + length as int64; a window may cross from one shard to the next.

        Raises UserError that names shard and offset if an id is beyond the vocabulary.
        """
        pieces, wanted = [], length
        number = int(np.searchsorted(self.ends, start, side="right"))
        offset = start - (int(self.ends[number - 1]) if number else 0)
        while wanted:
            piece = self.arrays[number][offset : offset + wanted]
            check_ids(self.folder / self.shards[number]["file"], piece, self.vocab_size, offset)
            pieces.append(piece)
            wanted -= piece.size
            number, offset = number + 1, 0
        return np.concatenate(pieces).astype(np.int64)
