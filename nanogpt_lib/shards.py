"""Token shards: flat uint16 files that a run maps into memory, and the meta.json beside them.

Exported from notebooks/08_fineweb.ipynb; edit the notebook, not this file.

A dataset folder holds train_000000.npy, train_000001.npy, …, val_000000.npy and, written last,
meta.json: the tokenizer, the source, and for every shard its tokens and SHA-256.
"""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from nanogpt_lib.config import UserError

SHARD_TOKENS = 100_000_000  # 200 MB as uint16, as in the lecture


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside, flush to the disk, rename: a file under its final name is always whole."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value) -> None:
    """Write a value as indented JSON, atomically."""
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode("utf-8"))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_shard(path: Path, tokens: np.ndarray) -> dict:
    """Write tokens as a uint16 .npy file; return its line for meta.json."""
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < 2**16:
        raise UserError(f"{path}: token ids must be between 0 and 65535 to fit uint16")
    buffer = io.BytesIO()
    np.save(buffer, tokens.astype(np.uint16))
    data = buffer.getvalue()
    write_atomically(path, data)
    digest = hashlib.sha256(data).hexdigest()
    return {"file": path.name, "tokens": int(tokens.size), "sha256": digest}


class ShardWriter:
    """Cut a stream of documents into shards; killed and started again, it goes on where it was.

    The first val_tokens tokens become the validation shard, the rest training shards. After every
    shard, progress.json records the position of the document that the next shard begins in and how
    many of its tokens were already written. `position` can be anything JSON can hold.
    """

    def __init__(self, folder: Path, val_tokens: int, shard_tokens: int = SHARD_TOKENS):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.val_tokens, self.shard_tokens = val_tokens, shard_tokens
        self.plan = {"val_tokens": val_tokens, "shard_tokens": shard_tokens}
        self.shards: list[dict] = []
        self.position, self.skip = None, 0  # where to go on: document, tokens of it already written
        self.pieces: list[np.ndarray] = []  # what the current shard has so far
        self.filled = 0
        progress = self.folder / "progress.json"
        if progress.exists():
            saved = json.loads(progress.read_text(encoding="utf-8"))
            if saved["plan"] != self.plan:
                raise UserError(
                    f"{progress}: begun with {saved['plan']}; remove the folder to redo"
                )
            self.shards = saved["shards"]
            self.position, self.skip = saved["position"], saved["skip"]
            for shard in self.shards:
                check_shard(self.folder, shard)

    def capacity(self) -> int:
        """Tokens that fit the shard being filled."""
        return self.shard_tokens if self.shards or not self.val_tokens else self.val_tokens

    def add(self, position, tokens: np.ndarray) -> None:
        """Append one document. After a restart, begin with the document at self.position."""
        done = 0
        if self.skip:
            done, self.skip = self.skip, 0
        while done < tokens.size:
            piece = tokens[done : done + self.capacity() - self.filled]
            self.pieces.append(piece)
            self.filled += piece.size
            done += piece.size
            if self.filled == self.capacity():
                self.flush(position, done)

    def flush(self, position, done: int) -> None:
        """Write the current shard and remember where the next one begins."""
        val_shards = 1 if self.val_tokens else 0
        number = len(self.shards)
        name = f"val_{0:06d}.npy" if number < val_shards else f"train_{number - val_shards:06d}.npy"
        shard = write_shard(self.folder / name, np.concatenate(self.pieces))
        self.shards.append(shard)
        self.pieces, self.filled = [], 0
        progress = {"plan": self.plan, "shards": self.shards, "position": position, "skip": done}
        write_json(self.folder / "progress.json", progress)

    def close(self, meta: dict) -> dict:
        """Write the last, shorter shard and meta.json; return the meta."""
        if self.filled:
            self.flush(None, 0)
        splits: dict[str, list[dict]] = {"train": [], "val": []}
        for shard in self.shards:
            splits[shard["file"].split("_")[0]].append(shard)
        meta = write_meta(self.folder, meta, splits)
        (self.folder / "progress.json").unlink(missing_ok=True)
        return meta


def write_meta(folder: Path, meta: dict, splits: dict[str, list[dict]]) -> dict:
    """Write meta.json: what `meta` says (name, source, tokenizer, vocab_size), and the shards."""
    for split in ("train", "val"):
        if not sum(shard["tokens"] for shard in splits[split]):
            raise UserError(f"{folder}: no tokens left for the {split} split; too little text")
    meta = {"format": 1, "dtype": "uint16", **meta, "splits": splits}
    write_json(Path(folder) / "meta.json", meta)
    return meta


def write_splits(folder: Path, meta: dict, train: np.ndarray, val: np.ndarray) -> dict:
    """Write a small dataset that is already split: one shard each, and meta.json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    splits = {
        "train": [write_shard(folder / "train_000000.npy", train)],
        "val": [write_shard(folder / "val_000000.npy", val)],
    }
    return write_meta(folder, meta, splits)


def encode_documents(
    documents: Iterable[tuple[object, str]],
    encode_batch: Callable[[list[str]], list[list[int]]],
    eot: int,
    batch: int = 256,
) -> Iterator[tuple[object, np.ndarray]]:
    """(position, text) → (position, uint16 tokens); <|endoftext|> comes before every document.

    `encode_batch` encodes many texts at once, on all cores (tiktoken's encode_ordinary_batch).
    """

    def encoded(waiting):
        for (position, _), ids in zip(waiting, encode_batch([t for _, t in waiting]), strict=True):
            yield position, np.array([eot, *ids], dtype=np.uint16)

    waiting = []
    for document in documents:
        waiting.append(document)
        if len(waiting) == batch:
            yield from encoded(waiting)
            waiting = []
    yield from encoded(waiting)


def read_meta(folder: str | Path) -> dict:
    """Read and check meta.json of a dataset folder; raises UserError that says what is wrong."""
    path = Path(folder) / "meta.json"
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such data folder; make it with python data/NAME.py")
    if not path.exists():
        raise UserError(f"{folder}: no meta.json, so not a finished dataset; run its recipe again")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        whole = (
            meta["format"] == 1 and meta["vocab_size"] > 0 and isinstance(meta["tokenizer"], dict)
        )
        for split in ("train", "val"):
            for shard in meta["splits"][split]:
                whole = whole and Path(shard["file"]).name == shard["file"] and shard["tokens"] >= 0
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise UserError(f"{path}: damaged or of another format; run the recipe again")
    return meta


def check_shard(folder: Path, shard: dict) -> np.ndarray:
    """Map one shard into memory (nothing is read yet) and compare it with its line in meta.json."""
    path = Path(folder) / shard["file"]
    if not path.exists():
        raise UserError(f"{path}: missing, though meta.json lists it; run the recipe again")
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: cut short or not a token shard; run the recipe again") from error
    if tokens.dtype != np.uint16 or tokens.ndim != 1:
        raise UserError(f"{path}: holds {tokens.dtype}, {tokens.ndim}-d; expected a row of uint16")
    if tokens.size != shard["tokens"]:
        raise UserError(f"{path}: {tokens.size} tokens, meta.json says {shard['tokens']}")
    return tokens


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
            if piece.size and int(piece.max()) >= self.vocab_size:
                at = offset + int((piece >= self.vocab_size).argmax())
                raise UserError(
                    f"{self.folder / self.shards[number]['file']}: token {self.arrays[number][at]} "
                    f"at offset {at} is beyond the vocabulary of {self.vocab_size}"
                )
            pieces.append(piece)
            wanted -= piece.size
            number, offset = number + 1, 0
        return np.concatenate(pieces).astype(np.int64)
