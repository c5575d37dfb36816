"""Your own files as documents: .txt, .md, .jsonl and .parquet, read in small parts.

A .txt or .md file is one document; so is each line of .jsonl and each row of .parquet. Text is read
in units (a document, or a block of a long file) and yielded in pieces; each piece records its
place, from which reading can resume after a kill.
"""

import codecs
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from nanogpt_lib.recipes.parquet import choose_column, read_footer, read_texts, text_column
from nanogpt_lib.recipes.sources import is_hidden
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import file_sha256
from nanogpt_lib.support.vocabulary import without_surrogates

KINDS = {".txt": "text", ".md": "text", ".jsonl": "jsonl", ".parquet": "parquet"}
BLOCK = 1 << 20  # bytes of a text file read at a time
PIECE = 1 << 16  # characters encoded at a time
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class TextFile:
    """A file to read, its name relative to the given folder, and its format."""

    path: Path
    name: str
    kind: str


@dataclass(frozen=True)
class Unit:
    """Contiguous text of a file: a document, or a block of one."""

    offset: int  # byte offset in a text or .jsonl file, row number in a .parquet file
    text: str
    begins: bool  # whether it begins a document


@dataclass(frozen=True)
class Piece:
    """Text that is encoded in one go."""

    # file, unit's offset, characters into the unit, characters and documents before the unit
    place: tuple[int, int, int, int, int]
    text: str
    begins: bool  # whether it begins a document
    held_out: bool  # whether it is for validation


BEGIN = (0, 0, 0, 0, 0)


def find_files(given: list[Path]) -> tuple[list[TextFile], int, int]:
    """The files to read (folders sorted by name), and how many hidden and other ones are skipped.

    A file given by name is read whatever its suffix: as text unless it is .jsonl or .parquet.
    Raises UserError if there is nothing to read.
    """
    found, hidden, others = [], 0, 0
    for path in given:
        if path.is_file():
            found.append(TextFile(path, path.name, KINDS.get(path.suffix.lower(), "text")))
        elif not path.is_dir():
            raise UserError(f"{path}: no such file or folder")
        else:
            for below in sorted(p.relative_to(path) for p in path.rglob("*") if p.is_file()):
                kind = KINDS.get(below.suffix.lower())
                hidden, others = hidden + is_hidden(below), others + (not kind)
                if kind and not is_hidden(below):
                    found.append(TextFile(path / below, below.as_posix(), kind))
    once = {file.path.resolve(): file for file in reversed(found)}
    files = [file for file in found if once[file.path.resolve()] is file]
    if not files:
        raise UserError(f"{given[0]}: has no {', '.join(KINDS)} files")
    return files, hidden, others


def fingerprint(files: list[TextFile], *settings) -> str:
    """A hash of the files' contents (not sizes or dates) and the settings."""
    sums = [(file.name, file_sha256(file.path)) for file in files]
    return hashlib.sha256(json.dumps([sums, settings]).encode("utf-8")).hexdigest()[:16]


def decode_utf8(file: TextFile, data: bytes, offset: int, final: bool = True) -> tuple[str, int]:
    """Bytes → text and the number of bytes used; raises UserError that names the offset."""
    try:
        text, used = codecs.utf_8_decode(data, "strict", final)
    except UnicodeDecodeError as error:
        at = offset + error.start
        kind = "UTF-16" if offset == 0 and data.startswith(UTF16) else "another encoding"
        raise UserError(
            f"{file.path}: byte {data[error.start]:#04x} at offset {at} is not UTF-8 ({kind} or "
            f"not text); save the file as UTF-8"
        ) from error
    if "\0" in text:
        at = offset + data.index(b"\0")
        raise UserError(f"{file.path}: a zero byte at offset {at} (UTF-16, or not text)")
    return text, used


def last_break(text: str) -> int:
    """The last place where white space begins; the whole length if there is none.

    No GPT-2 token spans such a place, so splitting there does not change the tokens.
    """
    first = max(0, len(text) - 10_000)
    breaks = [match.start() for match in re.finditer(r"(?<=\S)\s", text[first:])]
    return first + breaks[-1] if breaks else len(text)


def text_units(file: TextFile, column: str | None, start: int) -> Iterator[Unit]:
    """A text file, block by block, without a byte-order mark; \\r\\n and \\r become \\n."""
    with open(file.path, "rb") as opened:
        offset = start
        while True:
            opened.seek(offset)
            data = opened.read(BLOCK)
            text, used = decode_utf8(file, data, offset, final=len(data) < BLOCK)
            if len(data) == BLOCK:
                text = text[: last_break(text)]
                used = len(text.encode("utf-8"))
            if text:
                plain = text.removeprefix("\ufeff") if offset == 0 else text
                lines = plain.replace("\r\n", "\n").replace("\r", "\n")
                yield Unit(offset, lines, begins=offset == 0)
            offset += used
            if len(data) < BLOCK:
                return


def json_line(file: TextFile, line: bytes, number: int, offset: int):
    """Parse a line of .jsonl; raises UserError that names the line."""
    text, _ = decode_utf8(file, line, offset)
    try:
        return json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "nested too deeply")
        raise UserError(f"{file.path}: line {number} is not JSON ({reason})") from error


def jsonl_field(file: TextFile, first, wanted: str | None) -> str | None:
    """The text field, chosen from the first line; None if the lines are plain strings."""
    if isinstance(first, str):
        return None
    if not isinstance(first, dict):
        raise UserError(f"{file.path}: line 1 is neither an object nor a string")
    strings = [name for name, value in first.items() if isinstance(value, str)]
    return choose_column(list(first), strings, wanted, str(file.path))


def jsonl_units(file: TextFile, column: str | None, start: int) -> Iterator[Unit]:
    """The texts of a .jsonl file, line by line; blank lines and null texts are skipped."""
    field, chosen, offset = None, False, 0
    with open(file.path, "rb") as opened:
        for number, line in enumerate(opened, 1):
            here, offset = offset, offset + len(line)
            if not line.strip() or (chosen and here < start):
                continue
            value = json_line(file, line, number, here)
            if not chosen:
                field, chosen = jsonl_field(file, value, column), True
            if field is not None:
                value = value.get(field, 0) if isinstance(value, dict) else 0
            if not isinstance(value, str | None):
                what = f"no text in the field {field}" if field else "no string"
                raise UserError(f"{file.path}: line {number} has {what}")
            if value and here >= start:
                yield Unit(here, without_surrogates(value), begins=True)


def parquet_units(file: TextFile, column: str | None, start: int) -> Iterator[Unit]:
    """The texts of a parquet file, row by row."""
    name, row = str(file.path), 0
    read_footer(file.path, name)  # reports a damaged file
    with pq.ParquetFile(file.path) as opened:
        column = text_column(opened, column, name)
    for texts in read_texts(file.path, name, column):
        for text in texts:
            if text and row >= start:
                yield Unit(row, text, begins=True)
            row += 1


READERS = {"text": text_units, "jsonl": jsonl_units, "parquet": parquet_units}


def cut_unit(text: str, extra: int) -> list[int]:
    """Where the pieces of a unit begin: every PIECE characters or just before, and `extra`."""
    starts, at = [0], 0
    while len(text) - at > PIECE:
        at += last_break(text[at : at + PIECE])
        starts.append(at)
    return sorted({*starts, *([extra] if 0 < extra < len(text) else [])})


def read_pieces(
    files: list[TextFile],
    column: str | None,
    separator: str,
    cut: float,
    start: tuple[int, int, int, int, int] = BEGIN,
) -> Iterator[Piece]:
    """All texts in pieces, from the place `start`; those after character `cut` are held out.

    The separator between documents counts as text of the document that follows.
    """
    first_file, offset, within, characters, documents = start
    for number in range(first_file, len(files)):
        for unit in READERS[files[number].kind](files[number], column, offset):
            text = (separator if unit.begins and documents else "") + unit.text
            starts = cut_unit(text, int(min(cut - characters, len(text))))
            for a, b in zip(starts, [*starts[1:], len(text)], strict=True):
                if a >= within:
                    place = (number, unit.offset, a, characters, documents)
                    begins, held_out = unit.begins and a == 0, characters + a >= cut
                    yield Piece(place, text[a:b], begins, held_out)
            characters, documents, within = characters + len(text), documents + unit.begins, 0
        offset = 0
