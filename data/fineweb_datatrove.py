"""The same shards from many processes or many machines: data/fineweb.py on datatrove's executors.

    python data/fineweb_datatrove.py --local DIR --out OUT --workers 8
    python data/fineweb_datatrove.py --sample 100BT --out OUT --slurm PARTITION --workers 50

It needs `pip install datatrove`; with Slurm, an --out that all machines see. First a task per
parquet file writes that file's tokens, eot before each document, to OUT/parts. Then one task cuts
the parts, in the order of the files, into shards. A document's tokens depend on nothing but its
text, so the row of tokens is that of one machine, and so is every byte of every shard. Both steps
go on after a kill. OUT needs twice the space of the shards while the parts are there.
"""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from fineweb import choose_source, fineweb_parser

from nanogpt_lib.recipes.parquet import BEGIN, documents, encoded, validation_tokens
from nanogpt_lib.recipes.shard_writer import ShardWriter
from nanogpt_lib.recipes.sources import Source, dataset_meta, is_there, parse
from nanogpt_lib.recipes.text import DATA
from nanogpt_lib.support.cli import run_program
from nanogpt_lib.support.files import write_json


def write_part(source: Source, path: Path) -> None:
    """Tokenize the one file of a source into bare uint16; its .json is written last."""
    if path.with_suffix(".json").exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, count, size = path.with_suffix(".tmp"), 0, 0
    stream = documents(source, BEGIN, lambda read: None)
    with open(temporary, "wb") as file:
        for _, tokens in encoded(stream, threads=1):  # the tasks share the cores
            count, size = count + 1, size + tokens.size
            file.write(tokens)
    os.replace(temporary, path)
    write_json(path.with_suffix(".json"), {"documents": count, "tokens": size})


class TokenizeFiles(PipelineStep):
    """Step one: the files of this task, each into a part."""

    name, type = "tokenize", "TOKENIZER"

    def __init__(self, args):
        super().__init__()
        self.args = args

    def run(self, data=None, rank: int = 0, world_size: int = 1) -> None:
        """Called by datatrove, once per task."""
        _, source = choose_source(self.args)
        for number in range(rank, len(source.files), world_size):
            part = self.args.out / "parts" / f"{number:05d}.bin"
            write_part(replace(source, files=[source.files[number]]), part)


class CutShards(TokenizeFiles):
    """Step two, one task: all parts end to end into shards and meta.json."""

    name, type = "cut", "WRITER"

    def run(self, data=None, rank: int = 0, world_size: int = 1) -> None:
        """Called by datatrove, once."""
        out, parts = self.args.out, self.args.out / "parts"
        name, source = choose_source(self.args)
        if not is_there(out, source, name):
            val_tokens = validation_tokens(source, self.args.shard_tokens)
            plan = (val_tokens, self.args.shard_tokens, f"parts of {source.fingerprint}")
            writer = ShardWriter(out, *plan)
            notes = [
                json.loads((parts / f"{n:05d}.json").read_text()) for n in range(len(source.files))
            ]
            if writer.progress.meta is None:
                add_parts(writer, parts, [note["tokens"] for note in notes])
            total = {"documents": sum(note["documents"] for note in notes)}
            writer.close(dataset_meta(source, name) | total)
        shutil.rmtree(parts, ignore_errors=True)


def add_parts(writer: ShardWriter, parts: Path, sizes: list[int], piece: int = 1 << 20) -> None:
    """Give the parts to the writer, a piece at a time; from where it stood when it was killed."""
    first, start = writer.progress.position or (0, 0)
    for number in range(first, len(sizes)):
        if sizes[number]:
            tokens = np.memmap(parts / f"{number:05d}.bin", dtype=np.uint16, mode="r")
            for at in range(start, sizes[number], piece):
                writer.add((number, at), tokens[at : at + piece])
        start = 0


def main() -> None:
    """Build the two steps and run them here, or submit them."""
    parser = fineweb_parser()
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="tasks at a time")
    parser.add_argument("--slurm", metavar="PARTITION", help="submit with sbatch, do not run here")
    parser.add_argument("--time", default="24:00:00", help="Slurm's limit per task (24:00:00)")
    args = parse(parser)
    args.out = args.out.resolve()
    tasks, logs, first = (
        len(choose_source(args)[1].files),
        args.out.with_name(f"{args.out.name}_logs"),
        None,
    )
    for step, count in ((TokenizeFiles(args), tasks), (CutShards(args), 1)):
        how = dict(pipeline=[step], tasks=count, depends=first, logging_dir=str(logs / step.name))
        workers = min(args.workers, count)
        if args.slurm:
            path = (
                f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={DATA}:{DATA.parent}"
            )
            how |= dict(partition=args.slurm, time=args.time, env_command=path, mem_per_cpu_gb=4)
            first = SlurmPipelineExecutor(workers=workers, job_name=f"fineweb-{step.name}", **how)
        else:
            first = LocalPipelineExecutor(workers=workers, **how)
    first.run()  # and what it depends on


if __name__ == "__main__":
    from fineweb_datatrove import main  # the workers import the steps from this module

    run_program(
        "fineweb_datatrove.py", main, goes_on="the same command goes on", outlives_terminal=True
    )
