"""Token shards: flat uint16 files that a run maps into memory, and the meta.json beside them.

Exported from notebooks/08_fineweb.ipynb; edit the notebook, not this file.

A dataset folder holds train_000000.npy, train_000001.npy, …, val_000000.npy and, written last,
meta.json: the tokenizer, the source, and for every shard its tokens and SHA-256. Folders made by
nanoGPT, llm.c and the lecture's script have no meta.json and are read as they are.
"""

import hashlib
import io
import json
import os
import re
from pathlib import Path

import numpy as np

from nanogpt_lib.config import UserError, read_sealed, seal

SHARD_TOKENS = 100_000_000  # 200 MB as uint16, as in the lecture
LLMC_MAGIC, LLMC_HEADER = 20240520, 1024  # a .bin of llm.c: 256 int32 (magic, version, tokens, 0 …)
FOREIGN = re.compile(r"(?:(.+)_)?(train|val)(?:_\d+)?\.(bin|npy)")  # dataset, split, layout


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


def open_shard(path: Path) -> np.ndarray:
    """Map one shard into memory, nothing is read yet; raises UserError if it is not whole."""
    if path.suffix == ".bin":
        return open_bin(path)
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
        size = path.stat().st_size
    except Exception as error:  # numpy evaluates the header, which can fail in many ways
        raise UserError(f"{path}: cut short or not a token shard; run the recipe again") from error
    if tokens.dtype != np.uint16 or tokens.ndim != 1:
        raise UserError(f"{path}: holds {tokens.dtype}, {tokens.ndim}-d; expected a row of uint16")
    if tokens.size and size != tokens.offset + tokens.nbytes:
        raise UserError(f"{path}: longer than its header says; run the recipe again")
    return tokens


def check_shard(folder: Path, shard: dict) -> np.ndarray:
    """Map one shard into memory and compare it with its line in meta.json."""
    path = Path(folder) / shard["file"]
    if not path.exists():
        raise UserError(f"{path}: missing, though meta.json lists it; run the recipe again")
    tokens = open_shard(path)
    if tokens.size != shard["tokens"]:
        raise UserError(f"{path}: {tokens.size} tokens, meta.json says {shard['tokens']}")
    return tokens


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


def is_whole(meta: dict) -> bool:
    """Whether a meta.json has every field a reader needs, and names no file outside its folder."""
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
    """meta.json of a dataset folder, checked; raises UserError that says what is wrong.

    For a folder of nanoGPT or llm.c, which has none, what it would say.
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
        if "sha256" in meta or meta["format"] != 1:  # format 1 was written without a seal
            meta = read_sealed(path)
        whole = is_whole(meta)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise UserError(f"{path}: damaged or of another format; run the recipe again")
    return meta


def check_ids(path: Path, tokens: np.ndarray, vocab_size: int, first: int = 0) -> None:
    """Raise UserError naming file and offset of an id beyond the vocabulary; tokens[0] is `first`.

    Reads all the tokens it is given.
    """
    if tokens.size and int(tokens.max()) >= vocab_size:
        at = int((tokens >= vocab_size).argmax())
        where = f"token {tokens[at]} at offset {first + at}"
        raise UserError(f"{path}: {where} is beyond the vocabulary of {vocab_size}")


def verify_shards(folder: str | Path, part: int = 0, parts: int = 1) -> int:
    """Read every shard: SHA-256 as in meta.json (where it has one), every id in the vocabulary?

    Of several processes, each verifies its part: one shard in `parts`, from number `part` on.
    Returns the number of tokens; raises UserError that names the shard, and for an id its offset.
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


def open_bin(path: Path) -> np.ndarray:
    """Map a .bin file: llm.c's with its header, or nanoGPT's train.bin and val.bin without one.

    GPT-2's tokens cannot be taken for the header: its first two bytes are token 55432.
    """
    size, header = path.stat().st_size, np.fromfile(path, dtype="<i4", count=LLMC_HEADER // 4)
    if header.size and header[0] == LLMC_MAGIC:
        if size < LLMC_HEADER or header[1] != 1:
            raise UserError(f"{path}: header cut short or of another version; get the file again")
        offset, tokens = LLMC_HEADER, int(header[2])
    elif path.name in ("train.bin", "val.bin"):
        offset, tokens = 0, size // 2
    else:
        raise UserError(f"{path}: does not begin with {LLMC_MAGIC}, so no GPT-2 shard of llm.c")
    if tokens < 1 or size != offset + 2 * tokens:
        says = f"{max(0, size - offset) / 2:.12g} tokens, not {tokens} as expected"
        raise UserError(f"{path}: the file has room for {says}; get it again")
    return np.memmap(path, dtype="<u2", mode="r", offset=offset, shape=(tokens,))


def foreign_tokenizer(folder: Path) -> tuple[dict, int]:
    """Tokenizer and vocabulary of a folder without meta.json: GPT-2, or what characters.json says.

    nanoGPT keeps its characters in a pickle, which can run code when opened; we do not open it.
    """
    alphabet = folder / "characters.json"
    if not alphabet.exists() and (folder / "meta.pkl").exists():
        code = "json.dump(''.join(pickle.load(open('meta.pkl','rb'))['stoi']), open(F,'w'))"
        raise UserError(
            f"{folder}: characters, which only meta.pkl lists, and pickles are not opened here. "
            f'If you made it, run there: python -c "import json, pickle; '
            f'{code.replace("F", repr(alphabet.name))}"'
        )
    if not alphabet.exists():
        return {"name": "gpt2"}, 50257
    try:
        characters = json.loads(alphabet.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        characters = None
    if not isinstance(characters, str) or list(characters) != sorted(set(characters)):
        raise UserError(f"{alphabet}: must be one string of sorted characters")
    return {"name": "char", "characters": characters}, len(characters)


def foreign_meta(folder: Path) -> dict | None:
    """What meta.json would say of shards made by nanoGPT, llm.c or the lecture; None if none.

    A .npy needs a prefix, as in edufineweb_train_000001.npy: without one it is ours, unfinished.
    """
    splits, prefixes = {"train": [], "val": []}, set()
    for path in sorted(folder.iterdir()):
        match = FOREIGN.fullmatch(path.name)
        if match and (match[3] == "bin" or match[1]):
            splits[match[2]].append({"file": path.name, "tokens": open_shard(path).size})
            prefixes.add(match[1] or "")
    if len(prefixes) > 1:
        raise UserError(f"{folder}: shards of several datasets {sorted(prefixes)}; keep one")
    if not prefixes:
        return None
    tokenizer, vocab_size = foreign_tokenizer(folder)
    source = f"shards of another program, tokenizer taken to be {tokenizer['name']}"
    meta = {"format": 1, "dtype": "uint16", "name": folder.resolve().name, "source": source}
    return {**meta, "tokenizer": tokenizer, "vocab_size": vocab_size, "splits": splits}
