"""Make a dataset of your own text, for data/text.py: any files, characters or GPT-2's tokens.

Only a few pieces are in memory at a time, so folders of any size work. After a kill the same
command continues, and the files come out byte-identical.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nanogpt_lib.recipes.encoding import batch_encoder, encode_ahead
from nanogpt_lib.recipes.shard_writer import ShardWriter
from nanogpt_lib.recipes.sources import counted, same_dataset
from nanogpt_lib.recipes.text import for_text, known_tokenizer
from nanogpt_lib.recipes.text_files import BEGIN, Piece, TextFile, find_files, read_pieces
from nanogpt_lib.recipes.text_files import fingerprint as text_fingerprint
from nanogpt_lib.shards import SHARD_TOKENS, document_row
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import in_units, make_folder, require_space
from nanogpt_lib.support.vocabulary import encode_gpt2
from nanogpt_lib.tokenizer import CharTokenizer, GPT2Tokenizer


@dataclass
class Contents:
    """What a first pass over all texts finds."""

    documents: int = 0
    characters: int = 0  # separators included
    size: int = 0  # bytes of UTF-8
    alphabet: frozenset[str] = frozenset()


def survey(files: list[TextFile], column: str | None, separator: str) -> Contents:
    """Read all texts once, so that any error in them is found before anything is written."""
    contents, alphabet = Contents(), set()
    pieces = read_pieces(files, column, separator, math.inf)
    for piece in tqdm(pieces, desc="reading", disable=None, unit=" pieces", leave=False):
        contents.documents += piece.begins
        contents.characters += len(piece.text)
        contents.size += len(piece.text.encode("utf-8"))
        alphabet.update(piece.text)
    contents.alphabet = frozenset(alphabet)
    return contents


class CharacterTable:
    """CharTokenizer.encode for long texts: an array over all code points instead of a dict."""

    def __init__(self, tokenizer: CharTokenizer):
        self.ids = np.full(0x110000, -1, dtype=np.int32)
        self.ids[[ord(character) for character in tokenizer.characters]] = range(
            tokenizer.vocab_size
        )

    def encode(self, text: str) -> np.ndarray:
        """Text → ids; raises UserError for a character that the first pass did not see."""
        ids = self.ids[np.frombuffer(text.encode("utf-32-le"), dtype="<u4")]
        if ids.size and ids.min() < 0:
            raise UserError("the files changed while they were being read; run the recipe again")
        return ids.astype(np.uint16)


def encode_pieces(
    pieces: Iterator[Piece], tokenizer: CharTokenizer | GPT2Tokenizer
) -> Iterator[tuple[Piece, np.ndarray]]:
    """(piece, uint16 tokens); GPT-2's <|endoftext|> comes before every document."""
    if tokenizer.eot is None:
        table = CharacterTable(tokenizer)
        for piece in pieces:
            yield piece, table.encode(piece.text)
        return
    named = ((piece, piece.text) for piece in pieces)
    for piece, ids in encode_ahead(named, batch_encoder(encode_gpt2), batch=256):
        row = document_row(ids, tokenizer.eot)
        yield piece, row if piece.begins else row[1:]


def choose_tokenizer(
    known: CharTokenizer | GPT2Tokenizer | None, contents: Contents, source: str
) -> CharTokenizer | GPT2Tokenizer:
    """The tokenizer; raises UserError if there are more characters than uint16 ids."""
    tokenizer = for_text(known, "".join(contents.alphabet))
    if tokenizer.vocab_size > 2**16:
        raise UserError(
            f"{source}: {tokenizer.vocab_size:,} different characters; a shard can hold at most "
            f"65,536; use --tokenizer gpt2"
        )
    return tokenizer


def describe_source(files: list[TextFile]) -> str:
    """Describe the files for meta.json."""
    names = ", ".join(file.name for file in files[:3])
    return f"own text: {names}" + (f" and {len(files) - 3} more files" if len(files) > 3 else "")


def make_text_dataset(
    given: list[Path],
    out: Path,
    name: str,
    tokenizer_name: str,
    column: str | None = None,
    shard_tokens: int = SHARD_TOKENS,
) -> dict:
    """Make a dataset of files and folders in `out`; its last tenth is for validation.

    Documents are separated by a blank line or, with GPT-2's tokenizer, by <|endoftext|>. Returns
    the dataset's meta. Raises UserError if a file cannot be read, or `out` has another dataset.
    """
    files, hidden, others = find_files(given)
    if hidden or others:
        print(f"skipped: {counted(hidden, 'hidden file')}, {others:,} of other kinds")
    make_folder(out)
    known = known_tokenizer(tokenizer_name)
    whose = known.describe() if isinstance(known, CharTokenizer) else tokenizer_name
    fingerprint = text_fingerprint(files, whose, column)
    if (meta := same_dataset(out, fingerprint, name)) is not None:
        print(f"{out}: already there, made from the same files")
        return meta
    separator = "" if isinstance(known, GPT2Tokenizer) else "\n\n"
    contents, source = survey(files, column, separator), describe_source(files)
    if contents.characters < 20:
        raise UserError(f"{given[0]}: {contents.characters} characters of text are too few")
    tokenizer = choose_tokenizer(known, contents, source)
    writer = ShardWriter(out, 0, shard_tokens, fingerprint)
    most = 2 * contents.characters if separator else contents.size * 2 / 3
    require_space(out, most, f"about {in_units(most)} for tokens needed")
    if writer.progress.meta is None:
        start = tuple(writer.progress.position or BEGIN)
        cut = int(0.9 * contents.characters)
        pieces = read_pieces(files, column, separator, cut, start)
        with tqdm(total=contents.characters, initial=start[3], disable=None, unit="ch") as bar:
            for piece, tokens in encode_pieces(pieces, tokenizer):
                writer.add(piece.place, tokens, piece.held_out)
                bar.update(len(piece.text))
    described = {"name": name, "source": source, "fingerprint": fingerprint}
    described |= {"documents": contents.documents, "characters": contents.characters}
    described |= {"tokenizer": tokenizer.describe(), "vocab_size": tokenizer.vocab_size}
    return writer.close(described)
