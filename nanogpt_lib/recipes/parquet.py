"""Code shared by the recipes for parquet datasets: files → documents → shards, a file at a time.

A recipe may be killed at any moment: the same command continues it, and the files come out
byte-identical. Shards already written are kept, and a half-written document is encoded again.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from nanogpt_lib.recipes.encoding import encode_gpt2_documents
from nanogpt_lib.recipes.shard_writer import ShardWriter
from nanogpt_lib.recipes.sources import Source, counted, dataset_meta, is_finished
from nanogpt_lib.shards import SHARD_TOKENS
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.files import in_units, make_folder, require_space

Place = tuple[int, int, int, int]  # file, row in it, rows before this one, documents before it
BEGIN = (0, 0, 0, 0)


def choose_column(names: list[str], strings: list[str], wanted: str | None, where: str) -> str:
    """The text column: the one wanted, else `text`, else the only string column.

    Raises UserError that lists the string columns.
    """
    if wanted is None and "text" in strings:
        return "text"
    if wanted is None and len(strings) == 1:
        return strings[0]
    if wanted in names:
        if wanted in strings:
            return wanted
        raise UserError(f"{where}: column {wanted} is not text; columns of text: {strings}")
    raise UserError(f"{where}: no column {wanted or 'text'}; give --column, one of {strings}")


def text_column(file: pq.ParquetFile, wanted: str | None, name: str) -> str:
    """The text column of a parquet file (see choose_column)."""

    def is_text(kind: pa.DataType) -> bool:
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        return kind in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())

    schema = file.schema_arrow
    strings = [field.name for field in schema if is_text(field.type)]
    return choose_column(schema.names, strings, wanted, name)


def read_texts(path: Path, name: str, column: str | None = None) -> Iterator[list[str]]:
    """The text column of a parquet file, a few hundred documents at a time.

    Invalid UTF-8 (such as lone surrogates) becomes U+FFFD, a null the empty string.
    """
    try:
        with pq.ParquetFile(path) as file:
            column = text_column(file, column, name)
            for batch in file.iter_batches(batch_size=256, columns=[column]):
                values = batch.column(0)
                if pa.types.is_dictionary(values.type):
                    values = values.dictionary_decode()
                texts = values.cast(pa.large_binary()).to_pylist()
                yield [(text or b"").decode("utf-8", errors="replace") for text in texts]
    except (pa.ArrowException, OSError) as error:
        first = str(error).split("\n")[0]
        raise UserError(f"{name}: not a whole parquet file ({first})") from error


def read_documents(
    source: Source, start: Place, on_read: Callable[[float], None]
) -> Iterator[tuple[Place, str]]:
    """Yield (place, text), beginning at `start`; one file on disk at a time.

    `on_read` is called with the bytes of parquet read so far, over all files.
    """
    first_file, first_row, index, count = start
    for number in range(first_file, len(source.files)):
        name, size = source.files[number]
        before = sum(size for _, size in source.files[:number])
        path, row = source.fetch(name), 0
        total = count_rows(path, name)
        for texts in read_texts(path, name, source.column):
            for at in range(max(0, first_row - row), len(texts)):
                yield (number, row + at, index, count), texts[at]
                index, count = index + 1, count + bool(texts[at])
            row += len(texts)
            on_read(before + size * row / total)
        first_row = 0
        source.release(path)


def read_footer(path: Path, name: str) -> pq.FileMetaData:
    """The metadata in a parquet file's footer."""
    try:
        return pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        first = str(error).split("\n")[0]
        raise UserError(f"{name}: not a whole parquet file ({first})") from error


def count_rows(path: Path, name: str) -> int:
    """The number of rows in a parquet file."""
    return read_footer(path, name).num_rows


def shard_bytes(source: Source) -> int:
    """Estimate the size of the shards: 2 bytes per token, and at least 3.4 bytes of text per token.

    Files on the hub cannot be inspected in advance; there 0.7 is the ratio of FineWeb-Edu's
    sample-10BT: 28.5 GB of parquet, 9.95 billion tokens.
    """
    if source.remote:
        return int(0.7 * source.size)
    text = 0
    for name, _ in source.files:
        path = source.fetch(name)
        with_text = read_footer(path, name)
        with pq.ParquetFile(path, metadata=with_text) as file:
            wanted = text_column(file, source.column, name)
        for group in map(with_text.row_group, range(with_text.num_row_groups)):
            columns = map(group.column, range(group.num_columns))
            text += sum(c.total_uncompressed_size for c in columns if c.path_in_schema == wanted)
    return int(text * 2 / 3.4)


def validation_tokens(source: Source, shard_tokens: int = SHARD_TOKENS) -> int:
    """The size of the validation split: one shard, as in the lecture; less for small data.

    A token is seldom more than 5 bytes of parquet, so a 50th of the bytes is at most 10 % of the
    tokens. It depends only on file sizes, so it is known before anything is read.
    """
    return max(2, min(shard_tokens, source.size // 50))


def check_disk(source: Source, out: Path, keep: bool, written: int) -> None:
    """Print how much disk space is needed and free; raises UserError if there is too little."""
    shards = max(0, shard_bytes(source) - 2 * written)
    parquet = (source.size if keep else max(size for _, size in source.files)) * source.remote
    what = f"{in_units(shards)} for tokens and {in_units(parquet)} for parquet files"
    require_space(out, shards + parquet, f"about {what} needed")


class ProgressBar:
    """Progress, speed and time left: a bar on a terminal, and a line per shard."""

    def __init__(self, source: Source, written: int):
        self.size, self.written, self.tokens = source.size, written, 0
        self.begun, self.first, self.fraction = time.perf_counter(), None if written else 0.0, 0.0
        self.bar = tqdm(total=100, disable=None, bar_format="{percentage:3.0f}%|{bar}| {desc}")

    def on_read(self, read: float) -> None:
        """Record that `read` bytes of parquet have been read, over all files."""
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
        """Update the bar."""
        self.bar.n = 100 * self.fraction
        self.bar.set_description_str(str(self))


def write_documents(
    source: Source, writer: ShardWriter, held_out: Callable[[Place], bool], written: int
) -> int:
    """Tokenize everything from the writer's position; return the total number of documents."""
    position = tuple(writer.progress.position or BEGIN)
    progress, count = ProgressBar(source, written), position[3]
    stream = read_documents(source, position, progress.on_read)
    for place, tokens in encode_gpt2_documents(stream):
        shards, skip = len(writer.progress.shards), writer.skip
        writer.add(place, tokens, held_out(place))
        count = place[3] + 1
        progress.tokens += tokens.size - skip
        if len(writer.progress.shards) > shards:
            progress.bar.write(f"{writer.progress.shards[-1]['file']}: {progress}")
        if count % 512 == 0:
            progress.show()
    progress.bar.close()
    return count


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
    """Make a dataset of all documents of a source in `out`, resuming after a kill.

    Returns its meta, or None if it already exists.
    """
    make_folder(out)
    if is_finished(out, source, name):
        return None
    writer = ShardWriter(out, val_tokens, shard_tokens, source.fingerprint)
    written = sum(shard["tokens"] for shard in writer.progress.shards)
    print(
        f"{source.title}: {counted(len(source.files), 'file')}, {in_units(source.size)} of parquet"
    )
    check_disk(source, out, keep, written)
    if writer.progress.shards:
        print(f"resuming after {counted(len(writer.progress.shards), 'shard')}, {written:,} tokens")
    meta = dataset_meta(source, name)
    if writer.progress.meta is None:
        meta["documents"] = write_documents(source, writer, held_out, written)
    meta = writer.close(meta)
    if source.remote and not keep:
        shutil.rmtree(out / "parquet", ignore_errors=True)
    sizes = [sum(shard["tokens"] for shard in meta["splits"][s]) for s in ("train", "val")]
    print(
        f"{counted(meta['documents'], 'document')} → {sizes[0]:,} training and {sizes[1]:,} "
        f"validation tokens in {out}"
    )
    return meta
