"""What the recipes for parquet datasets share: files → documents → shards, a file at a time.

Killed at any moment and started again with the same command, a recipe goes on and ends with
byte-identical files: the shards already written stay, the document that was cut is encoded again.
"""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from nanogpt_lib.config import UserError
from nanogpt_lib.shards import (
    SHARD_TOKENS,
    ShardWriter,
    batch_encoder,
    encode_documents,
    read_meta,
)
from nanogpt_lib.tokenizer import GPT2Tokenizer, gpt2_encoding

# tiktoken's regular expression gives up on a run of white space of a million characters
LONG_SPACE = re.compile(r"\s{200000,}")


@dataclass
class Source:
    """Parquet files in a fixed order, and how to have one of them on the disk for a while."""

    title: str  # goes into meta.json
    files: list[tuple[str, int]]  # name, bytes
    fetch: Callable[[str], Path]  # name → where it is now
    release: Callable[[Path], None] = field(default=lambda path: None)  # it has been read
    remote: bool = False  # a file takes disk space while it is read

    def __post_init__(self):
        if not self.files:
            raise UserError(f"{self.title}: no .parquet files there")

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size in self.files)

    @property
    def fingerprint(self) -> str:
        """Changes if a file is added, removed, renamed or of another length."""
        return hashlib.sha256(json.dumps(self.files).encode("utf-8")).hexdigest()[:16]


def local_source(folder: Path, title: str, files: int | None = None) -> Source:
    """The .parquet files below a folder, in the order of their names; they are left there."""
    if not folder.is_dir():
        raise UserError(f"--local {folder}: no such folder")
    found = sorted(p for p in folder.rglob("*.parquet") if p.is_file())[:files]
    names = [(p.relative_to(folder).as_posix(), p.stat().st_size) for p in found]
    return Source(title, names, lambda name: folder / name)


def hub_source(
    repo: str, folder: str, revision: str, downloads: Path, keep: bool, files: int | None = None
) -> Source:
    """The .parquet files of a folder of a dataset on the Hugging Face hub, fetched one by one.

    HF_ENDPOINT, HF_TOKEN and the proxy variables are obeyed; a broken transfer is continued.
    """
    from huggingface_hub import HfApi, hf_hub_download

    title = f"{repo}, {folder}, revision {revision}"

    def failed(error: Exception) -> UserError:
        first = (str(error).strip() or type(error).__name__).split("\n")[0]
        return UserError(
            f"{repo}: {first}; once the hub can be reached, the same command goes on. "
            "Or give the parquet files with --local DIR"
        )

    def fetch(name: str) -> Path:
        how = dict(repo_type="dataset", revision=revision, local_dir=downloads)
        try:
            return Path(hf_hub_download(repo, name, **how))
        except Exception as error:
            raise failed(error) from error

    try:
        listed = list(HfApi().list_repo_tree(repo, folder, revision=revision, repo_type="dataset"))
    except Exception as error:
        raise failed(error) from error
    names = sorted((e.path, e.size) for e in listed if e.path.endswith(".parquet"))[:files]
    release = (lambda path: None) if keep else (lambda path: path.unlink())
    return Source(title, names, fetch, release, remote=True)


def documents(
    source: Source, start: tuple[int, int, int], tell: Callable[[float], None]
) -> Iterator[tuple[tuple[int, int, int], str]]:
    """Yield ((file, row, documents before it), text), from `start` on; one file on disk at a time.

    Bytes that are no UTF-8 (lone surrogates among them) become U+FFFD, a null the empty text.
    `tell` hears how many bytes of parquet have been read.
    """
    first_file, first_row, count = start
    for number in range(first_file, len(source.files)):
        name, size = source.files[number]
        before = sum(size for _, size in source.files[:number])
        path = source.fetch(name)
        try:
            with pq.ParquetFile(path) as file:
                if "text" not in file.schema_arrow.names:
                    raise UserError(f"{name}: no column text; it has {file.schema_arrow.names}")
                row, total = 0, file.metadata.num_rows
                for batch in file.iter_batches(batch_size=256, columns=["text"]):
                    if row + len(batch) > first_row:
                        texts = batch.column(0).cast(pa.large_binary()).to_pylist()
                        for at in range(max(0, first_row - row), len(texts)):
                            text = (texts[at] or b"").decode("utf-8", errors="replace")
                            yield (number, row + at, count), text
                            count += bool(text)
                    row += len(batch)
                    tell(before + size * row / total)
        except (pa.ArrowException, OSError) as error:
            first = str(error).split("\n")[0]
            raise UserError(f"{name}: not a whole parquet file ({first})") from error
        first_row = 0
        source.release(path)


def encode_any(text: str) -> list[int]:
    """Text → GPT-2 ids, also with more white space in a row than tiktoken bears.

    `<|endoftext|>` in a text is ordinary text.
    """
    encode = gpt2_encoding().encode_ordinary
    if len(text) < 200_000 or not LONG_SPACE.search(text):
        return encode(text)
    parts = re.split(r"(\s{200000})", text)
    return [token for part in parts if part for token in encode(part)]


def validation_tokens(source: Source, shard_tokens: int = SHARD_TOKENS) -> int:
    """The first shard, as in the lecture; of small data about a twentieth of it.

    A token is seldom more than 5 bytes of parquet, so a 50th of the bytes is at most 10 % of the
    tokens. The files' sizes alone decide, so the answer is known before anything is read.
    """
    return max(1, min(shard_tokens, source.size // 50))


def check_disk(source: Source, out: Path, keep: bool, done_tokens: int) -> None:
    """Say what space is needed and what there is; raise UserError if it is too little."""
    # FineWeb-Edu's sample-10BT: 28.5 GB of parquet, 9.95 billion tokens of 2 bytes
    shards = max(0, int(0.7 * source.size) - 2 * done_tokens)
    parquet = (source.size if keep else max(size for _, size in source.files)) * source.remote
    free = shutil.disk_usage(out).free
    text = (
        f"about {shards / 1e9:.3g} GB for tokens and {parquet / 1e9:.3g} GB for parquet files "
        f"needed, {free / 1e9:.3g} GB free in {out}"
    )
    if shards + parquet > free:
        raise UserError(f"{text}; choose a larger disk with --out")
    print(text)


class Progress:
    """How far, how fast, how long still: a bar on a terminal, and a line for every shard."""

    def __init__(self, source: Source, written: int):
        self.size, self.written, self.tokens = source.size, written, 0
        self.begun, self.first, self.fraction = time.perf_counter(), None, 0.0
        self.bar = tqdm(total=100, disable=None, bar_format="{percentage:3.0f}%|{bar}| {desc}")

    def tell(self, read: float) -> None:
        """So many bytes of parquet have been read, counted from the first file on."""
        self.fraction = read / self.size
        self.first = self.fraction if self.first is None else self.first

    def __str__(self) -> str:
        seconds = time.perf_counter() - self.begun
        pace = (self.fraction - (self.first or 0.0)) / seconds
        left = timedelta(seconds=round((1 - self.fraction) / pace)) if pace > 0 else "?"
        rate = f"{self.tokens / seconds:,.0f} tokens/s"
        return f"{self.written + self.tokens:,} tokens, {rate}, {left} left"

    def show(self) -> None:
        """Move the bar."""
        self.bar.n = 100 * self.fraction
        self.bar.set_description_str(str(self))


def write_documents(
    source: Source, writer: ShardWriter, held_out: Callable[[tuple], bool], written: int
) -> int:
    """Tokenize everything from the writer's position on; return how many documents there are."""
    position = tuple(writer.progress.position or (0, 0, 0))
    progress, count = Progress(source, written), position[2]
    stream = documents(source, position, progress.tell)
    encode_batch = batch_encoder(encode_any)
    for place, tokens in encode_documents(stream, encode_batch, GPT2Tokenizer.eot):
        shards, skip = len(writer.progress.shards), writer.skip
        writer.add(place, tokens, held_out(place))
        count = place[2] + 1
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
    held_out: Callable[[tuple[int, int, int]], bool] = lambda position: False,
) -> None:
    """Make a dataset of all documents of a source in `out`; go on where a kill stopped."""
    finished = (out / "meta.json").exists() and not (out / "progress.json").exists()
    if finished and read_meta(out).get("fingerprint") == source.fingerprint:
        print(f"{out}: already there, from {source.title}")
        return
    writer = ShardWriter(out, val_tokens, shard_tokens, source.fingerprint)
    written = sum(shard["tokens"] for shard in writer.progress.shards)
    print(f"{source.title}: {len(source.files)} files, {source.size / 1e9:.3g} GB of parquet")
    check_disk(source, out, keep, written)
    if writer.progress.shards:
        print(f"going on after {len(writer.progress.shards)} shards, {written:,} tokens")
    meta = {"name": name, "source": source.title, "fingerprint": source.fingerprint}
    meta |= {"tokenizer": GPT2Tokenizer().describe(), "vocab_size": GPT2Tokenizer.vocab_size}
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
