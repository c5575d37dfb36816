"""The lecture's speed-ups and further ones, each measured on the same training step.

    python tests/benchmarks/bench_speedups.py            GPT-2 124M, sizes that suit the device
    python tests/benchmarks/bench_speedups.py --preset gpt2-350m --batch-size 16 --block-size 1024
    python tests/benchmarks/bench_speedups.py --json notebooks/recorded/speedups_gpu.json

Each of the lecture's speed-ups keeps all earlier ones; unsupported ones are reported as such. Then
the memory that every preset needs. Chapter 05 shows the files notebooks/recorded/speedups_*.json.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from speedups import Variant, further_changes, lecture_variants, measure_or_note

from nanogpt_lib.bench import preset_model
from nanogpt_lib.choices import OPTIMIZERS, SHAPE, model_config, state_bytes
from nanogpt_lib.config import TrainConfig
from nanogpt_lib.device import detect_device
from nanogpt_lib.model import GPTConfig
from nanogpt_lib.presets import PRESETS
from nanogpt_lib.support.cli import OneLineParser, run_program
from nanogpt_lib.support.files import write_json
from nanogpt_lib.support.machine import describe_machine, name_of
from nanogpt_lib.support.memory import rows_that_fit, training_bytes

ROWS = (1, 4, 16, 64)  # per micro-batch, in the table of memory
WORTH = 1.01  # keep a further speed-up only if it is this many times faster: less may be noise


# --- the table of speed-ups -----------------------------------------------------------------------


def print_head() -> None:
    """Print the column names."""
    print(
        f"{'step':<26}{'ms/step':>9}{'tokens/s':>11}{'GFLOP/s':>9}{'MFU':>7}{'GB':>7}"
        f"{'ratio':>7}{'loss ±':>8}"
    )


def print_row(row: dict, first: dict) -> None:
    """Print one line of the table; ratio: tokens per second relative to the first row."""
    mfu = f"{row['mfu']:.1%}" if row["mfu"] else "—"
    memory = f"{row['memory_gb']:.1f}" if row["memory_gb"] else "—"
    ratio = row["tokens_per_sec"] / first["tokens_per_sec"]
    moved = "" if "moved" not in row else f"{row['moved']:.0e}"
    print(
        f"{row['name']:<26}{row['ms']:>9.1f}{row['tokens_per_sec']:>11,.0f}{row['gflops']:>9,.0f}"
        f"{mfu:>7}{memory:>7}{ratio:>7.2f}{moved:>8}  {row['note']}",
        flush=True,
    )


class Table:
    """The rows measured so far, each printed when measured, and the fastest variant kept."""

    def __init__(self, shape: GPTConfig, rows: int, steps: int, device: torch.device):
        self.shape, self.rows, self.steps, self.device = shape, rows, steps, device
        self.results: list[dict] = []
        self.best, self.fastest = Variant(), None

    def missing(self, name: str, reason: str) -> None:
        """Add a row that cannot be measured here."""
        print(f"  — {reason}")
        self.results.append({"name": name, "missing": reason, "kept": False})

    def add(self, variant: Variant, *, always: bool = False, candidate: bool = True) -> None:
        """Measure a variant. It is kept, for later ones to build on, if it is one of the lecture's
        (`always`) or a `candidate` that beats the fastest so far."""
        row = measure_or_note(variant, self.shape, self.rows, self.steps, self.device)
        if isinstance(row, str):
            self.missing(variant.name, row)
            return
        first = next((r for r in self.results if "loss" in r), row)
        if variant.factor == 1 and not variant.data:  # otherwise the batch differs
            row["moved"] = abs(row["loss"] - first["loss"])
        bar = WORTH * self.fastest["tokens_per_sec"] if self.fastest else 0.0
        row["kept"] = always or (candidate and row["tokens_per_sec"] > bar)
        if row["kept"]:
            self.best, self.fastest = variant, row
        dropped = candidate and not row["kept"]
        row["note"] = row["note"] or ("dropped" if dropped else "")
        self.results.append(row)
        print_row(row, first)


def measure_all(table: Table, variants: list[Variant | str], further: dict) -> None:
    """Fill the table: the lecture's speed-ups, further ones, then ways to load the data."""
    print_head()
    for variant in variants:
        if isinstance(variant, str):
            table.missing(variant.split(":")[0], variant)
        else:
            table.add(variant, always=True)
    print("beyond the lecture, each on top of the variants kept so far:")
    for name, change in further.items():
        table.add(replace(table.best, name=name, **change))
    for data, name in (("loader", "data from the disk"), ("ahead", "the same, read ahead")):
        table.add(replace(table.best, name=name, data=data), candidate=False)


# --- memory ---------------------------------------------------------------------------------------


def print_memory(dtype: torch.dtype) -> None:
    """Print peak memory by preset and micro-batch, and what fits, by chapter 05's formula."""
    cards = (8, 16, 24, 40, 80)
    print(f"\nPeak memory (GB) in {str(dtype).removeprefix('torch.')}, by rows per micro-batch;")
    print("then the largest micro-batch that divides the step and fits into a card's memory:")
    head = "".join(f"{f'{n} rows':>9}" for n in ROWS) + "".join(f"{f'{g} GB':>7}" for g in cards)
    print(f"  {'preset':<22}{head}")
    sharded = [("gpt2-1558m", 8), ("gpt2-1558m", 16)]  # on one node, and on two
    for name, ranks in [*((name, 1) for name in PRESETS), *sharded]:
        config, model = preset_model(name)
        own = state_bytes(OPTIMIZERS[config.optimizer](model, config, dtype))
        own_rows = config.total_batch_size // config.block_size // ranks
        needs = (training_bytes(model, n, dtype, own, ranks) / 1e9 for n in ROWS)
        fits = (rows_that_fit(model, dtype, gb * 1e9, own_rows, own, ranks) for gb in cards)
        label = f"{name}, fsdp, {ranks}" if ranks > 1 else name
        numbers = "".join(f"{need:9.2f}" for need in needs)
        print(f"  {label:<22}{numbers}" + "".join(f"{n or '—':>7}" for n in fits))


# --- the program ----------------------------------------------------------------------------------


def step_parser(prog: str, description: str) -> OneLineParser:
    """The options that define the step to be timed."""
    parser = OneLineParser(prog=prog, description=description.split("\n")[0])
    parser.add_argument("--preset", default="gpt2-124m", choices=list(PRESETS))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--batch-size", type=int, help="rows (default: 16 on a GPU, 1 on a CPU)")
    parser.add_argument(
        "--block-size", type=int, help="tokens per row (default: the preset's, 256 on a CPU)"
    )
    parser.add_argument("--steps", type=int, help="timed steps (default: 20 on a GPU, 3 on a CPU)")
    parser.add_argument("--compile", action="store_true", help="use torch.compile without CUDA too")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    return parser


def read_step(parser: OneLineParser, argv: list[str] | None, crop: bool = True):
    """Parse the options: (args, device, shape with GPT-2's vocabulary, number of rows)."""
    args = parser.parse_args(argv)
    for flag in ("batch_size", "block_size", "steps", "new_tokens", "rounds"):
        if (value := getattr(args, flag, None)) is not None and value < 1:
            parser.error(f"--{flag.replace('_', '-')} must be at least 1")
    device = detect_device(args.device)
    on_cpu = device.type == "cpu"
    config = TrainConfig(**PRESETS[args.preset])
    shape = replace(model_config(config, 50257), dropout=0.0)
    if args.block_size or (on_cpu and crop):
        shape = replace(shape, block_size=args.block_size or min(256, config.block_size))
    args.steps = args.steps or (3 if on_cpu else 20)
    args.compile = args.compile or device.type == "cuda"
    return args, device, shape, args.batch_size or (1 if on_cpu else 16)


def about(args: argparse.Namespace, device: torch.device, shape: GPTConfig, rows: int) -> dict:
    """Describe what is measured and where: print one line, return it as a dict."""
    name = name_of(device)
    print(f"{args.preset} on {device} ({name}), torch {torch.__version__}, ", end="")
    print(f"{torch.get_num_threads()} threads")
    sizes = {key: getattr(shape, key) for key in SHAPE if key != "vocab_multiple"}
    return {**describe_machine(name), "preset": args.preset, "rows": rows, **sizes}


def main(argv: list[str] | None = None) -> None:
    """Measure the speed-ups one after the other, then print what the presets need."""
    args, device, shape, rows = read_step(step_parser("bench_speedups.py", __doc__), argv)
    record = about(args, device, shape, rows)
    print(f"{rows} × {shape.block_size} tokens per step\n")
    table = Table(shape, rows, args.steps, device)
    further = further_changes(device, args.compile)
    measure_all(table, lecture_variants(device, args.compile), further)
    if device.type == "cpu":  # cannot be undone, so last
        freed = replace(table.best, name="freed memory kept", keep_memory=True)
        table.add(freed, candidate=False)
    print_memory(table.best.dtype)
    if args.json:
        write_json(args.json, {**record, "speedups": table.results})
        print(f"wrote {args.json}")


if __name__ == "__main__":
    run_program("bench_speedups.py", main)
