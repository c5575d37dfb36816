"""The two steps of data/fineweb_datatrove.py, in a module that datatrove's workers can import.

Each task of the first tokenizes one parquet file into one part; the single task of the second cuts
the concatenated parts, in file order, into shards.
"""

import json
import os
import shutil
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np

from nanogpt_lib.recipes.encoding import encode_gpt2_documents
from nanogpt_lib.recipes.fineweb import choose_source
from nanogpt_lib.recipes.parquet import BEGIN, read_documents, validation_tokens
from nanogpt_lib.recipes.shard_writer import ShardWriter
from nanogpt_lib.recipes.sources import Source, dataset_meta, is_finished
from nanogpt_lib.support.files import write_json

try:
    from datatrove.pipeline.base import PipelineStep
except ImportError:  # reported by the program, after it has handled --help and its arguments
    PipelineStep = object


def write_part(source: Source, path: Path) -> None:
    """Tokenize a source's only file into raw uint16; the part's .json is written last."""
    if path.with_suffix(".json").exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, count, size = path.with_suffix(".tmp"), 0, 0
    stream = read_documents(source, BEGIN, lambda read: None)
    with open(temporary, "wb") as file:
        for _, tokens in encode_gpt2_documents(stream, threads=1):  # tasks run in parallel already
            count, size = count + 1, size + tokens.size
            file.write(tokens)
    os.replace(temporary, path)
    write_json(path.with_suffix(".json"), {"documents": count, "tokens": size})


class TokenizeFiles(PipelineStep):
    """Step one: tokenize each of this task's files into a part."""

    name, type = "tokenize", "TOKENIZER"

    def __init__(self, args: Namespace):
        super().__init__()
        self.args = args

    def run(self, data=None, rank: int = 0, world_size: int = 1) -> None:
        """Called by datatrove, once per task."""
        _, source = choose_source(self.args)
        for number in range(rank, len(source.files), world_size):
            part = self.args.out / "parts" / f"{number:05d}.bin"
            write_part(replace(source, files=[source.files[number]]), part)


class CutShards(TokenizeFiles):
    """Step two, one task: cut all parts, concatenated, into shards and write meta.json."""

    name, type = "cut", "WRITER"

    def run(self, data=None, rank: int = 0, world_size: int = 1) -> None:
        """Called by datatrove, once."""
        out, parts = self.args.out, self.args.out / "parts"
        name, source = choose_source(self.args)
        if not is_finished(out, source, name):
            val_tokens = validation_tokens(source, self.args.shard_tokens)
            plan = (val_tokens, self.args.shard_tokens, f"parts of {source.fingerprint}")
            writer = ShardWriter(out, *plan)
            notes = [
                json.loads((parts / f"{n:05d}.json").read_text(encoding="utf-8"))
                for n in range(len(source.files))
            ]
            if writer.progress.meta is None:
                add_parts(writer, parts, [note["tokens"] for note in notes])
            total = {"documents": sum(note["documents"] for note in notes)}
            writer.close(dataset_meta(source, name) | total)
        shutil.rmtree(parts, ignore_errors=True)


def add_parts(writer: ShardWriter, parts: Path, sizes: list[int], piece: int = 1 << 20) -> None:
    """Pass the parts to the writer piece by piece, resuming where a killed run stopped."""
    first, start = writer.progress.position or (0, 0)
    for number in range(first, len(sizes)):
        if sizes[number]:
            tokens = np.memmap(parts / f"{number:05d}.bin", dtype=np.uint16, mode="r")
            for at in range(start, sizes[number], piece):
                writer.add((number, at), tokens[at : at + piece])
        start = 0
