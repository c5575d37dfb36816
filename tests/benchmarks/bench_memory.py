"""Peak memory per rank of a real run, with --parallel ddp and fsdp, above that of an idle rank.

    python tests/benchmarks/bench_memory.py                       209M parameters, 4 gloo ranks
    python tests/benchmarks/bench_memory.py --json memory.json --n-layer 6 --ranks 2

Each run trains, evaluates, draws samples, saves, and is resumed from its checkpoint; a sharded one
also starts from a Hugging Face folder. The peak is
the system's own figure (VmHWM on Linux, else ru_maxrss), the largest over all ranks. An idle rank
has imported the same modules and joined the process group. Exit status 1 if the sharded run's peak
is above 0.4 of ddp's, both less the idle rank's.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.fsdp

from nanogpt_lib import train
from nanogpt_lib.huggingface import save_huggingface
from nanogpt_lib.load import load_model
from nanogpt_lib.recipes.text import write_splits
from nanogpt_lib.support.cli import OneLineParser, run_program
from nanogpt_lib.support.files import write_json
from nanogpt_lib.support.machine import describe_machine, name_of
from nanogpt_lib.support.processes import process_group, read_world
from nanogpt_lib.tokenizer import GPT2Tokenizer

LIMIT = 0.4
STEPS = (
    "--n-head 12 --vocab-multiple 64 --eval-every 2 --eval-tokens 320 --hellaswag-every 0 "
    "--save-every 2 --sample-every 2 --sample-tokens 4 --warmup-steps 1 --device cpu "
    "--dtype float32 --keep-checkpoints 1 --log-every 1 --optimizer adamw"
).split()


def peak_bytes() -> int:
    """The most memory that this process has used so far, as the system counts it."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would include the process that started this one
        return 1024 * int(re.search(r"VmHWM:\s*(\d+)", status.read_text(encoding="ascii"))[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def be_a_rank(report: str, settings: list[str]) -> None:
    """One rank of a run, or without settings an idle one; write its peak into the report folder."""
    world = read_world()
    if settings:
        train.main(settings)
    else:
        with process_group(world, torch.device("cpu")):
            dist.barrier()
    Path(report, str(world.rank)).write_text(str(peak_bytes()), encoding="ascii")


def peaks(ranks: int, settings: list[str]) -> list[int]:
    """The peak of every rank of one torchrun."""
    with tempfile.TemporaryDirectory() as report:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc_per_node={ranks}", __file__, "--rank", report, "--", *settings]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env=env, stdout=sys.stderr)
        found = [int(Path(report, str(rank)).read_text(encoding="ascii")) for rank in range(ranks)]
    print(f"peak {max(found) / 1e6:,.0f} MB", file=sys.stderr, flush=True)
    return found


def write_data(folder: Path) -> Path:
    """Random GPT-2 tokens."""
    meta = {"name": "random", "source": "test", "tokenizer": GPT2Tokenizer().describe()}
    tokens = np.random.default_rng(0).integers(50257, size=20_000)
    write_splits(folder, {**meta, "vocab_size": 50257}, tokens[:-4000], tokens[-4000:])
    return folder


def measure(args: argparse.Namespace, folder: Path) -> dict:
    """All peaks in bytes: idle; per --parallel a new run and the same resumed; one from files."""
    tokens = args.ranks * args.block_size
    shape = ["--n-layer", args.n_layer, "--n-embd", args.n_embd, "--block-size", args.block_size]
    rows = ["--batch-size", 1, "--total-batch-size", tokens]
    common = [*map(str, shape + rows), *STEPS, "--data", str(write_data(folder / "data"))]
    found = {"idle": peaks(args.ranks, [])}
    for parallel in ("ddp", "fsdp"):
        own = [*common, "--parallel", parallel, "--out", str(folder / parallel)]
        found[parallel] = peaks(args.ranks, [*own, "--max-steps", "2"])
        found[parallel + " resumed"] = peaks(args.ranks, [*own, "--max-steps", "3", "--resume"])
    model, tokenizer = load_model(str(folder / "ddp"))
    save_huggingface(folder / "gpt2", vars(model.config), model.state_dict(), tokenizer)
    own = [*common, "--parallel", "fsdp", "--out", str(folder / "files"), "--max-steps", "1"]
    found["fsdp from files"] = peaks(args.ranks, [*own, "--init-from", str(folder / "gpt2")])
    return found


def verdict(found: dict) -> dict:
    """Largest peaks above the idle rank's, and the ratio of fsdp's to ddp's."""
    idle = max(found["idle"])
    above = {name: max(ranks) - idle for name, ranks in found.items() if name != "idle"}
    sharded, plain = (
        max(peak for name, peak in above.items() if name.startswith(parallel))
        for parallel in ("fsdp", "ddp")
    )
    ratio = sharded / plain
    return {"above_idle_bytes": above, "ratio": round(ratio, 3), "limit": LIMIT}


def main() -> int:
    """Measure, print, write."""
    if sys.argv[1:2] == ["--rank"]:
        return be_a_rank(sys.argv[2], sys.argv[4:])
    parser = OneLineParser("bench_memory.py", description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--n-layer", type=int, default=24)
    parser.add_argument("--n-embd", type=int, default=768)
    parser.add_argument("--block-size", type=int, default=64)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args, Path(folder))
    result = {**vars(args), "json": None, "peak_bytes": found, **verdict(found)}
    result["machine"] = describe_machine(name_of(torch.device("cpu")))
    print(json.dumps(result, indent=1))
    if args.json:
        write_json(args.json, result)
    return int(result["ratio"] > LIMIT)


if __name__ == "__main__":
    run_program("bench_memory.py", main)
