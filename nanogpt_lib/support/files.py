"""Files that can be trusted: written atomically, with a SHA-256 of their contents."""

import hashlib
import json
import os
import shutil
from pathlib import Path

from nanogpt_lib.support.errors import UserError


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write a temporary file, fsync, rename: a file under its final name is always complete."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:  # a failed write does not name its file
        error.filename = error.filename or str(path)
        raise


def write_json(path: Path, value) -> None:
    """Write a value as indented JSON, atomically."""
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode("utf-8"))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(value: dict) -> dict:
    """Return `value` with its SHA-256, so that damage is detected."""
    text = json.dumps(value, sort_keys=True)
    return {**value, "sha256": hashlib.sha256(text.encode("utf-8")).hexdigest()}


def read_sealed(path: Path) -> dict:
    """Read a JSON file written from `seal(value)`; return value. Raises OSError or UserError."""
    try:
        sealed = json.loads(path.read_text(encoding="utf-8"))
        value = {name: entry for name, entry in sealed.items() if name != "sha256"}
        whole = sealed == seal(value)
    except (ValueError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise UserError(f"{path}: damaged (its contents do not match its SHA-256)")
    return value


def flush_names(folder: Path) -> None:
    """Flush a folder's entries to disk, as fsync does a file's contents (not needed on Windows)."""
    if os.name != "nt":
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Create a folder to write into; raises UserError if that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{folder}: a file is in the way; choose another --out") from error
    except OSError as error:
        reason = f"cannot be created ({error.strerror})"
        raise UserError(f"{folder}: {reason}; choose another --out") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: cannot be written to; choose another --out")


def in_units(size: float) -> str:
    """A number of bytes for people to read: 12 B, 3.4 kB, 20 GB."""
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} GB" if size < 999.5 else f"{size:,.0f} GB"


def require_space(folder: Path, needed: float, what: str) -> None:
    """Print how much space is needed and free; raises UserError if there is too little.

    `what` is the first half of the line: how much is needed, and for what.
    """
    free = shutil.disk_usage(folder).free
    text = f"{what}, {in_units(free)} free in {folder}"
    if needed > free:
        raise UserError(f"{text}; choose a larger disk with --out")
    print(text)
