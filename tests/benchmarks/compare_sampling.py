"""Tokens per second when generating text: ours, transformers' and nanoGPT's, on the same shape.

    python tests/benchmarks/compare_sampling.py --nanogpt NANOGPT [--json FILE] [--busy]

Without a checkout of nanoGPT, only transformers is compared. Ours: the model as it is, then as
sample.py runs it, by dtype and by what the weights are rounded to. --busy keeps one core busy with
another process meanwhile.
"""

import contextlib
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from bench_speedups import about, read_step, step_parser
from other_checkouts import SIZES, nanogpt
from record import write_record

from nanogpt_lib.bench import print_sampling, sampling_ways, time_sampling
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.sampling import generate
from nanogpt_lib.support.cli import run_program


def their_ways(
    shape: GPTConfig, device: torch.device, checkout: Path | None
) -> dict[str, Callable]:
    """Their own generate() on models of this shape with random weights, top-k 50; by name."""
    from transformers import GPT2Config, GPT2LMHeadModel

    ways: dict[str, Callable] = {}
    sizes = {key: getattr(shape, key) for key in SIZES}
    if checkout:
        read = nanogpt(checkout)
        config = read["GPTConfig"](**sizes, vocab_size=50257, bias=shape.bias, dropout=0.0)
        with contextlib.redirect_stdout(io.StringIO()):  # it announces its parameters
            nano = read["GPT"](config).to(device).eval()
        ways["nanoGPT"] = lambda idx, n: nano.generate(idx, n, top_k=50)
    config = GPT2Config(n_positions=sizes.pop("block_size"), **sizes)
    hf = GPT2LMHeadModel(config).to(device).eval()
    options = dict(do_sample=True, top_k=50, pad_token_id=50256)

    def cached(idx, n):
        hf.generate(idx, max_new_tokens=n, min_new_tokens=n, **options)

    return {**ways, "transformers, cached": cached}


def our_ways(shape: GPTConfig, device: torch.device) -> dict[str, Callable]:
    """Ours, named apart from theirs; the first without packed weights."""
    model = GPT(shape).to(device).eval()

    def plain(idx, n):
        generate(model, idx, n, top_k=50)

    ways = sampling_ways(shape, device)
    return {"ours, plain float32": plain} | {f"ours, {name}": way for name, way in ways.items()}


@contextlib.contextmanager
def busy_core(wanted: bool) -> Iterator[None]:
    """Inside the block another process keeps a core busy, if wanted."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if wanted else None
    try:
        yield
    finally:
        if other:
            other.kill()
            other.wait()


def main(argv: list[str] | None = None) -> None:
    """Generate with each in turn, and print the table."""
    parser = step_parser("compare_sampling.py", __doc__.split("\n")[0])
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--new-tokens", type=int, default=400, help="tokens per text")
    parser.add_argument("--rounds", type=int, default=3, help="the best of these counts")
    parser.add_argument("--busy", action="store_true", help="keep one core busy meanwhile")
    args, device, shape, rows = read_step(parser, argv, crop=False)
    record = about(args, device, shape, rows)
    torch.manual_seed(0)
    ways = their_ways(shape, device, args.nanogpt) | our_ways(shape, device)
    with busy_core(args.busy):
        results = time_sampling(ways, device, args.new_tokens, args.rounds)
    print_sampling(results, args.new_tokens)
    if args.json:
        sizes = {key: record[key] for key in ("preset", *SIZES)}
        about_run = {"new_tokens": args.new_tokens, "busy": args.busy, **sizes}
        write_record(args.json, {**about_run, "sampling": results}, device)


if __name__ == "__main__":
    run_program("compare_sampling.py", main)
