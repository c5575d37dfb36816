"""One token shard on the disk, of our own layout (.npy) or llm.c's and nanoGPT's (.bin)."""

from pathlib import Path

import numpy as np

from nanogpt_lib.support.errors import UserError

LLMC_MAGIC, LLMC_HEADER = 20240520, 1024  # a .bin of llm.c: 256 int32 (magic, version, tokens, 0 …)


LLMC_MAGIC, LLMC_HEADER = 20240520, 1024  # a .bin of llm.c: 256 int32 (magic, version, tokens, 0 …)


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


def check_shard(folder: Path, shard: dict) -> np.ndarray:
    """Map one shard into memory and compare it with its line in meta.json."""
    path = Path(folder) / shard["file"]
    if not path.exists():
        raise UserError(f"{path}: missing, though meta.json lists it; run the recipe again")
    tokens = open_shard(path)
    if tokens.size != shard["tokens"]:
        raise UserError(f"{path}: {tokens.size} tokens, meta.json says {shard['tokens']}")
    return tokens


def check_ids(path: Path, tokens: np.ndarray, vocab_size: int, first: int = 0) -> None:
    """Raise UserError naming file and offset of an id beyond the vocabulary; tokens[0] is `first`.

    Reads all the tokens it is given.
    """
    if tokens.size and int(tokens.max()) >= vocab_size:
        at = int((tokens >= vocab_size).argmax())
        where = f"token {tokens[at]} at offset {first + at}"
        raise UserError(f"{path}: {where} is beyond the vocabulary of {vocab_size}")
