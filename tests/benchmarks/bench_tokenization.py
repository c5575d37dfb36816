"""Time the tokenization of documents: ours, the lecture's loop and plain tiktoken, interleaved.

    python tests/benchmarks/bench_tokenization.py PARQUET --build-nanogpt DIR

DIR is a checkout of build-nanogpt. Its fineweb.py is a script that downloads when it is imported,
so the part from `enc = …` to `write_datafile` is run unchanged, in this process and (as its pool
needs) in its workers; the loop below it is run with the same Pool, chunksize and buffer, over the
same documents, which are in memory for all. Ours includes reading the parquet file and everything
up to the sequence of tokens; nothing is written to disk. Rounds are interleaved; only ratios within
a round are meaningful.
"""

import argparse
import multiprocessing as mp
import os
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]
from nanogpt_lib.recipes.encoding import encode_gpt2_documents
from nanogpt_lib.recipes.parquet import read_texts
from nanogpt_lib.support.vocabulary import gpt2_encoding


def load_theirs(script: str) -> None:
    """Define the tokenize function of their script here, so that a pool can find it by name."""
    source = Path(script).read_text(encoding="utf-8")
    part = source[source.index("enc = tiktoken") : source.index("def write_datafile")]
    tiktoken = SimpleNamespace(get_encoding=lambda name: gpt2_encoding())  # without a download
    space = {"__name__": "__main__", "np": np, "tiktoken": tiktoken}
    exec(part, space)
    vars(sys.modules["__main__"])["tokenize"] = space["tokenize"]


def theirs(texts: list[str], pool, size: int) -> int:
    """Their loop: the pool's results into a preallocated shard."""
    tokenize = vars(sys.modules["__main__"])["tokenize"]
    shard, count = np.empty((size,), dtype=np.uint16), 0
    for tokens in pool.imap(tokenize, ({"text": t} for t in texts), chunksize=16):
        shard[count : count + len(tokens)] = tokens
        count += len(tokens)
    return count


def ours(path: Path, most: int, size: int) -> int:
    """The recipes' path from the parquet file to the sequence of tokens."""
    texts = (text for batch in read_texts(path, path.name) for text in batch)
    documents = ((i, text) for i, text in zip(range(most), texts))  # noqa: B905
    row, count = np.empty((size,), dtype=np.uint16), 0
    for _, tokens in encode_gpt2_documents(documents):
        row[count : count + len(tokens)] = tokens
        count += len(tokens)
    return count


def raw(texts: list[str]) -> int:
    """tiktoken's own batch on all cores; it knows no eot."""
    ids = gpt2_encoding().encode_ordinary_batch(texts, num_threads=os.cpu_count())
    return sum(map(len, ids)) + len(texts)


def main() -> None:
    """Run the rounds and print tokens per second and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parquet", type=Path)
    parser.add_argument("--build-nanogpt", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    texts = pq.read_table(args.parquet, columns=["text"])["text"].to_pylist()[: args.documents]
    size, script = sum(map(len, texts)) + 2 * len(texts), str(args.build_nanogpt / "fineweb.py")
    load_theirs(script)
    cores = os.cpu_count()
    with (
        mp.get_context("spawn").Pool(max(1, cores // 2), load_theirs, (script,)) as half,
        mp.get_context("spawn").Pool(cores, load_theirs, (script,)) as full,
    ):
        ways = {
            "tiktoken's batch": lambda: raw(texts),
            f"lecture, {max(1, cores // 2)} processes (its default)": lambda: theirs(
                texts, half, size
            ),
            f"lecture, {cores} processes": lambda: theirs(texts, full, size),
            "ours, from the parquet file": lambda: ours(args.parquet, len(texts), size),
        }
        seconds = {name: [] for name in ways}
        for number in range(args.rounds + 1):  # the first one warms up
            for name, way in ways.items():
                start = time.perf_counter()
                tokens = way()
                if number:
                    seconds[name].append(time.perf_counter() - start)
    print(f"{len(texts):,} documents, {tokens:,} tokens, {cores} cores, medians of {args.rounds}")
    last = list(ways)[-1]
    for name, taken in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(taken, seconds[last], strict=True))
        rate = tokens / statistics.median(taken)
        print(f"{name:38} {rate:>12,.0f} tokens/s; ours is {ratio:.2f} times as fast")


if __name__ == "__main__":
    main()
