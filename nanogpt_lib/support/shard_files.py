"""One token shard on the disk, of our own layout (.npy) or llm.c's and nanoGPT's (.bin)."""

from pathlib import Path

import numpy as np

from nanogpt_lib.support.errors import UserError, describe_os_error

LLMC_MAGIC, LLMC_HEADER = 20240520, 1024  # a .bin of llm.c: 256 int32 (magic, version, tokens, 0 …)


def open_shard(path: Path) -> np.ndarray:
    """Map one shard into memory, nothing is read yet; raises UserError if it is not whole."""
    try:
        return open_bin(path) if path.suffix == ".bin" else open_npy(path)
    except OSError as error:  # no permission, too many open files: nothing is wrong with the shard
        error.filename = error.filename or str(path)
        raise UserError(describe_os_error(error)) from error


def open_npy(path: Path) -> np.ndarray:
    """Map a shard of our own layout; raises OSError, or UserError if it is not whole."""
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
        size = path.stat().st_size
    except Exception as error:  # numpy evaluates the header, which can fail in many ways
        if isinstance(error, OSError) and error.errno is not None:
            raise
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
    ids = np.memmap(path, dtype="<u2", mode="r", offset=offset, shape=(tokens,))
    if offset == 0 and are_wider(ids):
        raise UserError(f"{path}: holds 32- or 64-bit integers; write the ids as uint16")
    return ids


def are_wider(ids: np.ndarray) -> bool:
    """Whether a bare file is one of 32- or 64-bit ids that was opened as uint16.

    Little-endian, every second uint16 is then an upper half: 0, or, in a vocabulary of up to a
    million, below 16. Three places of the file are looked at.
    """
    places = {0, ids.size // 2 // 4 * 4, max(0, ids.size - 4096) // 4 * 4}
    rows = np.concatenate([ids[at : at + 4096] for at in sorted(places)])
    lower, upper = rows[: rows.size // 2 * 2].reshape(-1, 2).T
    if lower.size < 8 or not lower.any():
        return False
    return int(upper.max()) == 0 or (int(lower.max()) >= 1000 and int(upper.max()) < 16)


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
