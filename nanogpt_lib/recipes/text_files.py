"""One's own files as documents: .txt and .md, .jsonl and .parquet, read in small parts.

A .txt or .md file is one document, a line of .jsonl and a row of .parquet is one each. Text is read
in units (a document, or a block of a long file), a unit is handed on in pieces, and a piece knows
its place, from which reading can begin again after a kill.
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
BLOCK = 1 << 20  # bytes of a text file that are read at a time
PIECE = 1 << 16  # characters that are encoded at a time
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class TextFile:
    """A file to read, its name below the folder that was given, and how it is read."""

    path: Path
    name: str
    kind: str


@dataclass(frozen=True)
class Unit:
    """Text that lies together in a file: a document, or a block of one."""

    offset: int  # the byte of a text or line, the row of a table
    text: str
    begins: bool  # whether a document begins with it


@dataclass(frozen=True)
class Piece:
    """Text to be encoded at a time."""

    # file, unit's offset, characters into the unit, characters and documents before the unit
    place: tuple[int, int, int, int, int]
    text: str
    begins: bool  # whether a document begins with it
    held_out: bool  # whether it is for validation


BEGIN = (0, 0, 0, 0, 0)


def find_files(given: list[Path]) -> tuple[list[TextFile], int, int]:
    """The files to read, in the order given and of names; how many hidden and other ones there are.

    A file that is named is read whatever its suffix, as text if it is no .jsonl or .parquet.
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
        raise UserError(f"{given[0]}: holds no {', '.join(KINDS)} files")
    return files, hidden, others


def fingerprint(files: list[TextFile], *settings) -> str:
    """Changes if a file or a setting does: made from the contents, not from sizes and dates."""
    sums = [(file.name, file_sha256(file.path)) for file in files]
    return hashlib.sha256(json.dumps([sums, settings]).encode("utf-8")).hexdigest()[:16]


def decode_utf8(file: TextFile, data: bytes, offset: int, final: bool = True) -> tuple[str, int]:
    """Bytes → text and the number of bytes it takes; raises UserError that names the offset."""
    try:
        text, used = codecs.utf_8_decode(data, "strict", final)
    except UnicodeDecodeError as error:
        at = offset + error.start
        kind = "UTF-16" if offset == 0 and data.startswith(UTF16) else "another encoding"
        raise UserError(
            f"{file.path}: byte {data[error.start]:#04x} at offset {at} is no UTF-8 ({kind} or no "
            f"text); save the file as UTF-8"
        ) from error
    if "\0" in text:
        at = offset + data.index(b"\0")
        raise UserError(f"{file.path}: a zero byte at offset {at} (UTF-16, or no text)")
    return text, used


def last_break(text: str) -> int:
    """The last place where white space begins; the whole length if there is none.

    No token of GPT-2 reaches from before such a place to behind it, so that the parts have the
    tokens of the whole.
    """
    first = max(0, len(text) - 10_000)
    breaks = [match.start() for match in re.finditer(r"(?<=\S)\s", text[first:])]
    return first + breaks[-1] if breaks else len(text)


def text_units(file: TextFile, column: str | None, start: int) -> Iterator[Unit]:
    """A text file, block by block; a byte-order mark is left out, \\r\\n becomes \\n."""
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
    """What a line of .jsonl holds; raises UserError that names the line."""
    text, _ = decode_utf8(file, line, offset)
    try:
        return json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "nested too deep")
        raise UserError(f"{file.path}: line {number} is no JSON ({reason})") from error


def jsonl_field(file: TextFile, first, wanted: str | None) -> str | None:
    """The field that holds the text, chosen at the first line; None if lines are bare strings."""
    if isinstance(first, str):
        return None
    if not isinstance(first, dict):
        raise UserError(f"{file.path}: line 1 holds neither an object nor a string")
    strings = [name for name, value in first.items() if isinstance(value, str)]
    return choose_column(list(first), strings, wanted, str(file.path))


def jsonl_units(file: TextFile, column: str | None, start: int) -> Iterator[Unit]:
    """The texts of a .jsonl file, line by line; blank lines are left out, a null is empty."""
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
    read_footer(file.path, name)  # says what is wrong with a file that is not whole
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
    """All texts in pieces, from a piece's place on; what lies behind character `cut` is held out.

    The separator stands between documents and counts as text of the one that follows.
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
