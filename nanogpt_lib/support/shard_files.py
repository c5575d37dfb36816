"""One token shard on disk, in our own layout (.npy) or llm.c's and nanoGPT's (.bin)."""

from pathlib import Path

import numpy as np

from nanogpt_lib.support.errors import UserError, describe_os_error

LLMC_MAGIC, LLMC_HEADER = 20240520, 1024  # a .bin of llm.c: 256 int32 (magic, version, tokens, 0 …)


def open_shard(path: Path) -> np.ndarray:
    """Memory-map one shard without reading it; raises UserError if it is incomplete."""
    try:
        return open_bin(path) if path.suffix == ".bin" else open_npy(path)
    except OSError as error:  # permissions, too many open files: the shard is fine
        error.filename = error.filename or str(path)
        raise UserError(describe_os_error(error)) from error


def open_npy(path: Path) -> np.ndarray:
    """Memory-map a shard in our own layout; raises OSError, or UserError if it is incomplete."""
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
        size = path.stat().st_size
    except Exception as error:  # numpy evaluates the header, which can fail in many ways
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{path}: truncated or not a token shard; run the recipe again") from error
    if tokens.dtype != np.uint16 or tokens.ndim != 1:
        raise UserError(f"{path}: has {tokens.dtype}, {tokens.ndim}-d; expected uint16, 1-d")
    if tokens.size and size != tokens.offset + tokens.nbytes:
        raise UserError(f"{path}: longer than its header says; run the recipe again")
    return tokens


def open_bin(path: Path) -> np.ndarray:
    """Memory-map a .bin file: llm.c's with its header, nanoGPT's train.bin or val.bin without.

    GPT-2's tokens cannot be mistaken for the header: its first two bytes would be token 55432.
    """
    size, header = path.stat().st_size, np.fromfile(path, dtype="<i4", count=LLMC_HEADER // 4)
    if header.size and header[0] == LLMC_MAGIC:
        if size < LLMC_HEADER or header[1] != 1:
            raise UserError(f"{path}: header truncated or another version; get the file again")
        offset, tokens = LLMC_HEADER, int(header[2])
    elif path.name in ("train.bin", "val.bin"):
        offset, tokens = 0, size // 2
    else:
        raise UserError(f"{path}: does not begin with {LLMC_MAGIC}, so not a GPT-2 shard of llm.c")
    if tokens < 1 or size != offset + 2 * tokens:
        says = f"{max(0, size - offset) / 2:.12g} tokens, not {tokens} as expected"
        raise UserError(f"{path}: the file has room for {says}; get it again")
    ids = np.memmap(path, dtype="<u2", mode="r", offset=offset, shape=(tokens,))
    if offset == 0 and are_wider(ids):
        raise UserError(f"{path}: holds 32- or 64-bit integers; write the ids as uint16")
    return ids


def are_wider(ids: np.ndarray) -> bool:
    """Whether a file without a header holds 32- or 64-bit ids instead of uint16.

    In little-endian order every second uint16 would then be an upper half: 0 or, with a vocabulary
    of up to a million, below 16. Three places of the file are checked.
    """
    places = {0, ids.size // 2 // 4 * 4, max(0, ids.size - 4096) // 4 * 4}
    rows = np.concatenate([ids[at : at + 4096] for at in sorted(places)])
    lower, upper = rows[: rows.size // 2 * 2].reshape(-1, 2).T
    if lower.size < 8 or not lower.any():
        return False
    return int(upper.max()) == 0 or (int(lower.max()) >= 1000 and int(upper.max()) < 16)


def check_shard(folder: Path, shard: dict) -> np.ndarray:
    """Memory-map one shard and compare its length with its entry in meta.json."""
    path = Path(folder) / shard["file"]
    if not path.exists():
        raise UserError(f"{path}: missing, though meta.json lists it; run the recipe again")
    tokens = open_shard(path)
    if tokens.size != shard["tokens"]:
        raise UserError(f"{path}: {tokens.size} tokens; meta.json says {shard['tokens']}")
    return tokens


def check_ids(path: Path, tokens: np.ndarray, vocab_size: int, first: int = 0) -> None:
    """Raise UserError naming file and offset of the first id outside the vocabulary.

    `first` is the offset of tokens[0]. Reads all the tokens.
    """
    if tokens.size and int(tokens.max()) >= vocab_size:
        at = int((tokens >= vocab_size).argmax())
        where = f"token {tokens[at]} at offset {first + at}"
        raise UserError(f"{path}: {where} is outside the vocabulary of {vocab_size}")
