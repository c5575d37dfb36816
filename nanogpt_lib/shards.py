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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from nanogpt_lib.config import UserError, read_sealed, seal

SHARD_TOKENS = 100_000_000  # 200 MB as uint16, as in the lecture


def batch_encoder(
    encode: Callable[[str], list[int]], threads: int | None = None, chunk: int = 8
) -> Callable[[list[str]], list[list[int]]]:
    """A function for one text becomes one for many texts, on several threads (default: all cores).

    A thread takes `chunk` texts at a time: handing over a short text alone costs more than encoding
    it. Threads suffice because tiktoken works outside Python's lock.
    """
    pool = ThreadPoolExecutor(threads or os.cpu_count() or 1)

    def encode_some(texts: list[str]) -> list[list[int]]:
        return [encode(text) for text in texts]

    def encode_batch(texts: list[str]) -> list[list[int]]:
        chunks = [texts[i : i + chunk] for i in range(0, len(texts), chunk)]
        return [ids for encoded in pool.map(encode_some, chunks) for ids in encoded]

    return encode_batch


def encode_documents(
    documents: Iterable[tuple[object, str]],
    encode_batch: Callable[[list[str]], list[list[int]]],
    eot: int,
    batch: int = 256,
) -> Iterator[tuple[object, np.ndarray]]:
    """(position, text) → (position, uint16 tokens); <|endoftext|> comes before every document.

    `encode_batch` encodes many texts at once (see batch_encoder). It works on the next batch while
    this one is consumed. An empty text is no document: left out.
    """
    documents = iter((position, text) for position, text in documents if text)

    def start():
        chosen = list(islice(documents, batch))
        texts = [text for _, text in chosen]
        return [position for position, _ in chosen], ahead.submit(encode_batch, texts)

    with ThreadPoolExecutor(1) as ahead:
        positions, task = start()
        while positions:
            following = start()
            for position, ids in zip(positions, task.result(), strict=True):
                yield position, np.array([eot, *ids], dtype=np.uint16)
            positions, task = following


def write_atomically(path: Path, data: bytes | memoryview) -> None:
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
    np.save(buffer, tokens.astype(np.uint16, copy=False))
    write_atomically(path, buffer.getbuffer())
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    return {"file": path.name, "tokens": int(tokens.size), "sha256": digest}


def check_shard(folder: Path, shard: dict) -> np.ndarray:
    """Map one shard into memory (nothing is read yet) and compare it with its line in meta.json."""
    path = Path(folder) / shard["file"]
    if not path.exists():
        raise UserError(f"{path}: missing, though meta.json lists it; run the recipe again")
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy evaluates the header, which can fail in many ways
        raise UserError(f"{path}: cut short or not a token shard; run the recipe again") from error
    if tokens.dtype != np.uint16 or tokens.ndim != 1:
        raise UserError(f"{path}: holds {tokens.dtype}, {tokens.ndim}-d; expected a row of uint16")
    if tokens.size != shard["tokens"]:
        raise UserError(f"{path}: {tokens.size} tokens, meta.json says {shard['tokens']}")
    return tokens


@dataclass
class Progress:
    """What a recipe must remember to go on after a kill; saved as progress.json."""

    plan: dict  # a folder begun with another plan is refused
    shards: list[dict] = field(default_factory=list)  # those written, in order
    position: object = None  # the document in which the next shard begins
    skip: int = 0  # how many of its tokens are written already
    meta: dict | None = None  # known once every document is written


def read_progress(folder: Path, plan: dict) -> Progress:
    """What a killed recipe left in progress.json, its shards checked; else a fresh start.

    Raises UserError if the folder holds another dataset: nothing is overwritten.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, other = folder / "progress.json", "remove it or choose another --out"
    if not path.exists():
        if (folder / "meta.json").exists():
            raise UserError(f"{folder}: already a finished dataset; {other}")
        return Progress(plan)
    progress = Progress(**json.loads(path.read_text(encoding="utf-8")))
    if progress.plan != plan:
        raise UserError(f"{folder}: begun from other files or with another shard size; {other}")
    for shard in progress.shards:
        check_shard(folder, shard)
    return progress


def write_meta(folder: Path, meta: dict, splits: dict[str, list[dict]]) -> dict:
    """Write meta.json: what `meta` says (name, source, tokenizer, vocab_size), and the shards."""
    for split in ("train", "val"):
        if not sum(shard["tokens"] for shard in splits[split]):
            raise UserError(f"{folder}: no tokens left for the {split} split; too little text")
    meta = {"format": 2, "dtype": "uint16", **meta, "splits": splits}
    write_json(Path(folder) / "meta.json", seal(meta))
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


def by_split(shards: list[dict]) -> dict[str, list[dict]]:
    """Sort the lines of shards into train and val, by their file names."""
    names = ("train", "val")
    return {n: [shard for shard in shards if shard["file"].startswith(n)] for n in names}


def write_waiting(folder: Path, waiting: dict[str, list[np.ndarray]], shards: list[dict]) -> None:
    """Write the pieces that wait as the next shard of their split; append its line to `shards`."""
    for split, pieces in waiting.items():
        if pieces:
            path = folder / f"{split}_{len(by_split(shards)[split]):06d}.npy"
            shards.append(write_shard(path, np.concatenate(pieces)))
            pieces.clear()


class ShardWriter:
    """Cut a stream of documents into shards; killed and started again, it goes on where it was.

    The first val_tokens tokens become the validation shard, the rest training shards. After a
    restart, begin with the document at `progress.position`, which can be anything JSON can hold.
    """

    def __init__(self, folder: Path, val_tokens: int, shard_tokens=SHARD_TOKENS, source: str = ""):
        self.folder, self.val_tokens, self.shard_tokens = Path(folder), val_tokens, shard_tokens
        plan = {"source": source, "val_tokens": val_tokens, "shard_tokens": shard_tokens}
        self.progress = read_progress(self.folder, plan)
        self.skip = self.progress.skip
        self.waiting = {"val": [], "train": []}  # pieces that are not yet on the disk
        self.filled = 0  # tokens in the shard being filled

    def add(self, position, tokens: np.ndarray, held_out: bool = False) -> None:
        """Append one document; held out, it goes whole to the validation split."""
        if held_out:
            self.waiting["val"].append(tokens)
            return
        done, self.skip = self.skip, 0
        while done < tokens.size:
            first = self.val_tokens > 0 and not self.progress.shards
            capacity = self.val_tokens if first else self.shard_tokens
            piece = tokens[done : done + capacity - self.filled]
            self.waiting["val" if first else "train"].append(piece)
            self.filled, done = self.filled + piece.size, done + piece.size
            if self.filled == capacity:
                self.flush(position, done)

    def flush(self, position, skip: int, meta: dict | None = None) -> None:
        """Write what waits, then remember in which document the next shard begins."""
        write_waiting(self.folder, self.waiting, self.progress.shards)
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


def is_whole(meta: dict) -> bool:
    """Whether a meta.json has every field a reader needs, and names no file outside its folder."""
    shards = meta["splits"]["train"] + meta["splits"]["val"]
    named = all(Path(s["file"]).name == s["file"] and s["tokens"] >= 0 for s in shards)
    return (
        named
        and meta["format"] in (1, 2)
        and meta["vocab_size"] > 0
        and isinstance(meta["tokenizer"], dict)
    )


def read_meta(folder: str | Path) -> dict:
    """Read and check meta.json of a dataset folder; raises UserError that says what is wrong."""
    path = Path(folder) / "meta.json"
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such data folder; make it with python data/NAME.py")
    if not path.exists():
        raise UserError(f"{folder}: no meta.json, so not a finished dataset; run its recipe again")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        if "sha256" in meta or meta["format"] != 1:  # format 1 was written without a seal
            meta = read_sealed(path)
        whole = is_whole(meta)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise UserError(f"{path}: damaged or of another format; run the recipe again")
    return meta


def verify_shards(folder: str | Path, part: int = 0, parts: int = 1) -> int:
    """Read every shard, compare its SHA-256 with meta.json; return how many tokens there are.

    Of several processes, each verifies its part: one shard in `parts`, from number `part` on.
    """
    meta, total = read_meta(folder), 0
    for shard in (meta["splits"]["train"] + meta["splits"]["val"])[part::parts]:
        total += check_shard(Path(folder), shard).size
        if file_sha256(Path(folder) / shard["file"]) != shard["sha256"]:
            raise UserError(f"{Path(folder) / shard['file']}: damaged (SHA-256 differs)")
    return total


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
