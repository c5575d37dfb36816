"""One training step of build-nanogpt, nanoGPT and ours, of the same shape, on this machine.

    python tests/benchmarks/compare_training.py --build-nanogpt BUILD_NANOGPT --nanogpt NANOGPT

Each as committed and, on a GPU or with --compile, compiled as well. Flags as for bench_speedups.py.
"""

from dataclasses import replace
from pathlib import Path

import torch
from bench_speedups import Table, about, print_head, print_row, read_step, step_parser
from other_checkouts import time_theirs
from record import write_record
from speedups import lecture_variants, row_of

from nanogpt_lib.device import choose_dtype
from nanogpt_lib.model import GPT
from nanogpt_lib.support.cli import run_program


def add_theirs(table: Table, name: str, folder: Path, compiled: bool) -> None:
    """Their own step as one more row."""
    label = name + (" compiled" if compiled else "")
    dtype, rows = choose_dtype(table.device), table.rows
    how = (table.shape, rows, table.steps, table.device, dtype, compiled)
    try:
        seconds, loss = time_theirs(name, folder, *how)
    except RuntimeError as error:
        table.missing(label, f"{label}: {str(error).strip().splitlines()[0][:80]}")
        return
    with torch.device("meta"):  # counts operations: of the same shape, padded as theirs
        ours = GPT(replace(table.shape, vocab_multiple=64))
    row = row_of(label, seconds, rows * table.shape.block_size, loss, ours, table.device)
    table.results.append(row)
    print_row(row, table.results[0])


def main(argv: list[str] | None = None) -> None:
    """Time all, ours last with freed memory kept, which cannot be undone."""
    parser = step_parser("compare_training.py", __doc__.split("\n")[0])
    parser.add_argument("--build-nanogpt", type=Path, help="a checkout of build-nanogpt")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    args, device, shape, rows = read_step(parser, argv)
    record = about(args, device, shape, rows)
    table = Table(shape, rows, args.steps, device)
    print(f"{rows} × {shape.block_size} tokens per step\n")
    print_head()
    checkouts = {"build-nanogpt": args.build_nanogpt, "nanoGPT": args.nanogpt}
    for name, folder in checkouts.items():
        for compiled in (False, True) if args.compile else (False,):
            if folder:
                add_theirs(table, name, folder, compiled)
    ours = lecture_variants(device, args.compile)[-1]  # with all of the lecture's speed-ups
    table.add(replace(ours, name="ours"), candidate=False)
    if device.type == "cpu":
        kept = replace(ours, name="ours, freed memory kept", keep_memory=True)
        table.add(kept, candidate=False)
    if args.json:
        sizes = {key: record[key] for key in ("preset", "rows", "block_size", "n_layer", "n_embd")}
        write_record(args.json, {**sizes, "training": table.results}, device)


if __name__ == "__main__":
    run_program("compare_training.py", main)
