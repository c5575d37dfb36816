"""What the recipes for parquet datasets share: files → documents → shards, a file at a time.

Killed at any moment and started again with the same command, a recipe goes on and ends with
byte-identical files: the shards already written stay, the document that was cut is encoded again.
"""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from nanogpt_lib.recipes.encoding import batch_encoder, encode_documents
from nanogpt_lib.recipes.shard_writer import ShardWriter
from nanogpt_lib.recipes.sources import Source, dataset_meta, is_there
from nanogpt_lib.shards import SHARD_TOKENS
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.vocabulary import gpt2_encoding
from nanogpt_lib.tokenizer import GPT2Tokenizer

# tiktoken's regular expression gives up on a run of white space of a million characters
LONG_SPACE = re.compile(r"\s{200000,}")
Place = tuple[int, int, int, int]  # file, row in it, rows before this one, documents before it
BEGIN = (0, 0, 0, 0)


def texts_of(path: Path, name: str) -> Iterator[list[str]]:
    """The column text of a parquet file, some hundred documents at a time.

    Bytes that are no UTF-8 (lone surrogates among them) become U+FFFD, a null the empty text.
    """
    try:
        with pq.ParquetFile(path) as file:
            if "text" not in file.schema_arrow.names:
                raise UserError(f"{name}: no column text; it has {file.schema_arrow.names}")
            for batch in file.iter_batches(batch_size=256, columns=["text"]):
                texts = batch.column(0).cast(pa.large_binary()).to_pylist()
                yield [(text or b"").decode("utf-8", errors="replace") for text in texts]
    except (pa.ArrowException, OSError) as error:
        first = str(error).split("\n")[0]
        raise UserError(f"{name}: not a whole parquet file ({first})") from error


def documents(
    source: Source, start: Place, tell: Callable[[float], None]
) -> Iterator[tuple[Place, str]]:
    """Yield (place, text), from the place `start` on; one file on disk at a time.

    `tell` hears how many bytes of parquet have been read.
    """
    first_file, first_row, index, count = start
    for number in range(first_file, len(source.files)):
        name, size = source.files[number]
        before = sum(size for _, size in source.files[:number])
        path, row = source.fetch(name), 0
        total = rows_of(path, name)
        for texts in texts_of(path, name):
            for at in range(max(0, first_row - row), len(texts)):
                yield (number, row + at, index, count), texts[at]
                index, count = index + 1, count + bool(texts[at])
            row += len(texts)
            tell(before + size * row / total)
        first_row = 0
        source.release(path)


def footer(path: Path, name: str) -> pq.FileMetaData:
    """What a parquet file says of itself at its end."""
    try:
        return pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        first = str(error).split("\n")[0]
        raise UserError(f"{name}: not a whole parquet file ({first})") from error


def rows_of(path: Path, name: str) -> int:
    """How many rows a parquet file has."""
    return footer(path, name).num_rows


def shard_bytes(source: Source) -> int:
    """About how many bytes of shards the files become: 2 for each token, 3.4 bytes of text or more.

    Files on the hub are not there to be asked: FineWeb-Edu's sample-10BT has 28.5 GB of parquet and
    9.95 billion tokens.
    """
    if source.remote:
        return int(0.7 * source.size)
    text = 0
    for name, _ in source.files:
        meta = footer(source.fetch(name), name)
        for group in map(meta.row_group, range(meta.num_row_groups)):
            columns = map(group.column, range(group.num_columns))
            text += sum(c.total_uncompressed_size for c in columns if c.path_in_schema == "text")
    return int(text * 2 / 3.4)


def encode_any(text: str) -> np.ndarray:
    """Text → GPT-2 ids, also with more white space in a row than tiktoken bears.

    `<|endoftext|>` in a text is ordinary text, a lone surrogate becomes U+FFFD. An array is what
    tiktoken gives fastest: no Python object per token.
    """
    parts = re.split(r"(\s{200000})", text) if LONG_SPACE.search(text) else [text]
    return np.concatenate([encode_part(part) for part in parts])


def encode_part(text: str) -> np.ndarray:
    """Text → GPT-2 ids."""
    try:
        return gpt2_encoding().encode_to_numpy(text, disallowed_special=())
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return gpt2_encoding().encode_to_numpy(text, disallowed_special=())


def encoded(stream: Iterator[tuple[object, str]], threads: int | None = None) -> Iterator:
    """(place, text) → (place, tokens), on several threads (default: one per core)."""
    threads = threads or os.cpu_count() or 1
    encode_batch = batch_encoder(encode_any, threads)
    return encode_documents(stream, encode_batch, GPT2Tokenizer.eot, batch=128 * threads)


def validation_tokens(source: Source, shard_tokens: int = SHARD_TOKENS) -> int:
    """The first shard, as in the lecture; of small data about a twentieth of it.

    A token is seldom more than 5 bytes of parquet, so a 50th of the bytes is at most 10 % of the
    tokens. The files' sizes alone decide, so the answer is known before anything is read.
    """
    return max(1, min(shard_tokens, source.size // 50))


def check_disk(source: Source, out: Path, keep: bool, done_tokens: int) -> None:
    """Say what space is needed and what there is; raise UserError if it is too little."""
    shards = max(0, shard_bytes(source) - 2 * done_tokens)
    parquet = (source.size if keep else max(size for _, size in source.files)) * source.remote
    free = shutil.disk_usage(out).free
    text = (
        f"about {shards / 1e9:.3g} GB for tokens and {parquet / 1e9:.3g} GB for parquet files "
        f"needed, {free / 1e9:.3g} GB free in {out}"
    )
    if shards + parquet > free:
        raise UserError(f"{text}; choose a larger disk with --out")
    print(text)


class Pace:
    """How far, how fast, how long still: a bar on a terminal, and a line for every shard."""

    def __init__(self, source: Source, written: int):
        self.size, self.written, self.tokens = source.size, written, 0
        self.begun, self.first, self.fraction = time.perf_counter(), None if written else 0.0, 0.0
        self.bar = tqdm(total=100, disable=None, bar_format="{percentage:3.0f}%|{bar}| {desc}")

    def tell(self, read: float) -> None:
        """So many bytes of parquet have been read, counted from the first file on."""
        self.fraction = read / self.size
        self.first = self.fraction if self.first is None else self.first

    def __str__(self) -> str:
        seconds = time.perf_counter() - self.begun
        pace = (self.fraction - (self.first or 0.0)) / seconds
        text = f"{self.written + self.tokens:,} tokens, {self.tokens / seconds:,.0f} tokens/s"
        if pace <= 0:
            return text
        return f"{text}, {timedelta(seconds=round((1 - self.fraction) / pace))} left"

    def show(self) -> None:
        """Move the bar."""
        self.bar.n = 100 * self.fraction
        self.bar.set_description_str(str(self))


def write_documents(
    source: Source, writer: ShardWriter, held_out: Callable[[Place], bool], written: int
) -> int:
    """Tokenize everything from the writer's position on; return how many documents there are."""
    position = tuple(writer.progress.position or BEGIN)
    pace, count = Pace(source, written), position[3]
    stream = documents(source, position, pace.tell)
    for place, tokens in encoded(stream):
        shards, skip = len(writer.progress.shards), writer.skip
        writer.add(place, tokens, held_out(place))
        count = place[3] + 1
        pace.tokens += tokens.size - skip
        if len(writer.progress.shards) > shards:
            pace.bar.write(f"{writer.progress.shards[-1]['file']}: {pace}")
        if count % 512 == 0:
            pace.show()
    pace.bar.close()
    return count


def count_files(source: Source) -> str:
    """As one says it."""
    return "1 file" if len(source.files) == 1 else f"{len(source.files)} files"


def make_shards(
    source: Source,
    out: Path,
    name: str,
    *,
    val_tokens: int,
    shard_tokens: int = SHARD_TOKENS,
    keep: bool = False,
    held_out: Callable[[Place], bool] = lambda place: False,
) -> dict | None:
    """Make a dataset of all documents of a source in `out`; go on where a kill stopped.

    Returns its meta, None if it was there already.
    """
    if is_there(out, source, name):
        return None
    writer = ShardWriter(out, val_tokens, shard_tokens, source.fingerprint)
    written = sum(shard["tokens"] for shard in writer.progress.shards)
    print(f"{source.title}: {count_files(source)}, {source.size / 1e9:.3g} GB of parquet")
    check_disk(source, out, keep, written)
    if writer.progress.shards:
        print(f"going on after {len(writer.progress.shards)} shards, {written:,} tokens")
    meta = dataset_meta(source, name)
    if writer.progress.meta is None:
        meta["documents"] = write_documents(source, writer, held_out, written)
    meta = writer.close(meta)
    if source.remote and not keep:
        shutil.rmtree(out / "parquet", ignore_errors=True)
    sizes = [sum(shard["tokens"] for shard in meta["splits"][s]) for s in ("train", "val")]
    print(
        f"{meta['documents']:,} documents → {sizes[0]:,} training and {sizes[1]:,} validation "
        f"tokens in {out}"
    )
    return meta
