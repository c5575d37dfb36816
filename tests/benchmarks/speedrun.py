"""A speedrun for a laptop: two cores, five minutes, Tiny Shakespeare; the lowest loss wins.

    python tests/benchmarks/speedrun.py tests/benchmarks/speedruns/gpt2.py
    python tests/benchmarks/speedrun.py my_entry.py --out my_runs.jsonl
    python tests/benchmarks/speedrun.py --board tests/benchmarks/speedruns/board.jsonl

The rules. An entry is a Python file with one function,

    train(tokens, vocab_size, seconds_left) -> model

tokens: (N,) int64, the first nine tenths of the text (python data/shakespeare.py: 65 characters);
seconds_left(): what is left of the five minutes, which begin when `train` is called. It returns a
torch module that maps ids (B, T ≤ 256) to logits (B, T, V), or to a pair of these and anything, as
this library's models do. Imports are free, compiling is not. The
entry may use this library and PyTorch, two threads, and nothing that was trained before; it never
sees the last tenth of the text. Its loss there, in nats per character, is the mean over all windows
of 256 characters side by side. An entry that returns late, or whose earlier logits change with a
later character, does not count.
"""

if __name__ == "__main__":
    from nanogpt_lib.support.threads import wait_briefly

    wait_briefly()  # before torch

import hashlib
import importlib.util
import time
from pathlib import Path

import torch
from record import about, append_line, read_lines
from torch.nn import functional as F

from nanogpt_lib.shards import TokenStream
from nanogpt_lib.support.cli import OneLineParser, run_program
from nanogpt_lib.support.errors import UserError
from nanogpt_lib.support.places import ROOT

SECONDS, THREADS, T = 300.0, 2, 256


def load_entry(path: Path):
    """The function `train` of an entry; raises UserError if the file has none."""
    spec = importlib.util.spec_from_file_location("entry", path)
    if spec is None or not path.exists():
        raise UserError(f"{path}: no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "train", None)):
        raise UserError(f"{path}: has no function train(tokens, vocab_size, seconds_left)")
    return module.train


def logits_of(model, idx: torch.Tensor) -> torch.Tensor:
    """ids (B, T) → logits (B, T, V)."""
    out = model(idx)
    return out[0] if isinstance(out, tuple) else out


@torch.inference_mode()
def judged(model, tokens: torch.Tensor, vocab_size: int) -> float:
    """The mean loss over all windows; raises UserError if the model looks ahead."""
    model.eval()
    probe = tokens[: 2 * T].view(2, T)
    changed = probe.clone()
    changed[:, T // 2 :] = (changed[:, T // 2 :] + 1) % vocab_size
    before, after = (logits_of(model, idx)[:, : T // 2] for idx in (probe, changed))
    if before.shape != (2, T // 2, vocab_size):
        raise UserError(f"the logits of (2, {T}) ids must be (2, {T}, {vocab_size})")
    if (before.float() - after.float()).abs().max() > 1e-3:
        raise UserError("an earlier logit changes with a later character: this model looks ahead")
    count = (len(tokens) - 1) // T
    x, y = tokens[: count * T].view(-1, T), tokens[1 : count * T + 1].view(-1, T)
    total = 0.0
    for rows, targets in zip(x.split(16), y.split(16), strict=True):
        logits = logits_of(model, rows).float().flatten(0, 1)
        total += F.cross_entropy(logits, targets.flatten(), reduction="sum").item()
    return total / y.numel()


def run(path: Path, seconds: float, data: Path) -> dict:
    """One attempt: train, check, judge."""
    streams = {split: TokenStream(data, split) for split in ("train", "val")}
    tokens = {s: torch.from_numpy(stream[: len(stream)]) for s, stream in streams.items()}
    vocab_size = streams["train"].vocab_size
    train = load_entry(path)
    torch.set_num_threads(THREADS)
    start = time.perf_counter()
    model = train(tokens["train"], vocab_size, lambda: seconds - (time.perf_counter() - start))
    spent = time.perf_counter() - start
    if spent > seconds * 1.01 + 0.5:
        raise UserError(
            f"{path.name} returned after {spent:.1f} seconds; {seconds:.0f} are allowed"
        )
    loss = judged(model, tokens["val"], vocab_size)
    source = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    result = {"entry": path.stem, "loss": round(loss, 4), "seconds": round(spent, 1)}
    return {**result, "limit": seconds, "source": source, "machine": about()}


def board(path: Path) -> None:
    """Print the entries of a file, best first."""
    for r in sorted(read_lines(path), key=lambda r: r["loss"]):
        machine = r["machine"]
        print(f"{r['loss']:.4f}  {r['entry']:12} {machine['cpu_class']:12} {machine['date']}")


def main() -> None:
    """Run an entry, or print a board."""
    parser = OneLineParser(prog="speedrun.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("entry", nargs="?", type=Path, help="the file of an entry")
    add("--seconds", type=float, default=SECONDS, help="less for a rehearsal (%(default)s)")
    add("--data", type=Path, default=ROOT / "data/shakespeare", help="the text (%(default)s)")
    add("--out", type=Path, help="append the result to this file of JSON lines")
    add("--board", type=Path, help="print this file, best first")
    args = parser.parse_args()
    if args.board:
        return board(args.board)
    if args.entry is None:
        parser.error("name the file of an entry")
    if not (args.data / "meta.json").exists():
        raise UserError(f"{args.data} is missing: python data/shakespeare.py")
    result = run(args.entry, args.seconds, args.data)
    print(f"{result['entry']}: {result['loss']:.4f} nats per character, {result['seconds']} s")
    if args.out:
        append_line(args.out, result)
    return None


if __name__ == "__main__":
    run_program("speedrun.py", main)
