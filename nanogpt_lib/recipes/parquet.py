"""What the recipes for parquet datasets share: files → documents → shards, a file at a time.

Killed at any moment and started again with the same command, a recipe goes on and ends with
byte-identical files: the shards already written stay, the document that was cut is encoded again.
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
    """The column that holds the text: the one wanted, else text, else the only one of strings.

    Raises UserError that names the columns there are.
    """
    if wanted is None and "text" in strings:
        return "text"
    if wanted is None and len(strings) == 1:
        return strings[0]
    if wanted in names:
        if wanted in strings:
            return wanted
        raise UserError(f"{where}: column {wanted} holds no text; of these one does: {strings}")
    raise UserError(f"{where}: no column {wanted or 'text'}; give --column, one of {strings}")


def text_column(file: pq.ParquetFile, wanted: str | None, name: str) -> str:
    """The column of a parquet file that holds the text (see choose_column)."""

    def is_text(kind: pa.DataType) -> bool:
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        return kind in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())

    schema = file.schema_arrow
    strings = [field.name for field in schema if is_text(field.type)]
    return choose_column(schema.names, strings, wanted, name)


def read_texts(path: Path, name: str, column: str | None = None) -> Iterator[list[str]]:
    """The text column of a parquet file, some hundred documents at a time.

    Bytes that are no UTF-8 (lone surrogates among them) become U+FFFD, a null the empty text.
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
    """Yield (place, text), from the place `start` on; one file on disk at a time.

    `on_read` is called with the bytes of parquet read so far, counted from the first file on.
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
    """What a parquet file says of itself at its end."""
    try:
        return pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        first = str(error).split("\n")[0]
        raise UserError(f"{name}: not a whole parquet file ({first})") from error


def count_rows(path: Path, name: str) -> int:
    """How many rows a parquet file has."""
    return read_footer(path, name).num_rows


def shard_bytes(source: Source) -> int:
    """About how many bytes of shards the files become: 2 for each token, 3.4 bytes of text or more.

    Files on the hub are not there to be asked: FineWeb-Edu's sample-10BT has 28.5 GB of parquet and
    9.95 billion tokens.
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
    """The first shard, as in the lecture; of small data about a twentieth of it.

    A token is seldom more than 5 bytes of parquet, so a 50th of the bytes is at most 10 % of the
    tokens. The files' sizes alone decide, so the answer is known before anything is read.
    """
    return max(2, min(shard_tokens, source.size // 50))


def check_disk(source: Source, out: Path, keep: bool, written: int) -> None:
    """Say what space is needed and what there is; raise UserError if it is too little."""
    shards = max(0, shard_bytes(source) - 2 * written)
    parquet = (source.size if keep else max(size for _, size in source.files)) * source.remote
    what = f"{in_units(shards)} for tokens and {in_units(parquet)} for parquet files"
    require_space(out, shards + parquet, f"about {what} needed")


class ProgressBar:
    """How far, how fast, how long still: a bar on a terminal, and a line for every shard."""

    def __init__(self, source: Source, written: int):
        self.size, self.written, self.tokens = source.size, written, 0
        self.begun, self.first, self.fraction = time.perf_counter(), None if written else 0.0, 0.0
        self.bar = tqdm(total=100, disable=None, bar_format="{percentage:3.0f}%|{bar}| {desc}")

    def on_read(self, read: float) -> None:
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
    """Make a dataset of all documents of a source in `out`; go on where a kill stopped.

    Returns its meta, None if it was there already.
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
        print(f"going on after {counted(len(writer.progress.shards), 'shard')}, {written:,} tokens")
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
