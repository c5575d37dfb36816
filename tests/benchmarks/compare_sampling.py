"""Tokens per second when generating text: ours, transformers' and nanoGPT's, on the same shape.

    python tests/benchmarks/compare_sampling.py --nanogpt NANOGPT

Without a checkout of nanoGPT, only transformers is compared. Flags as for bench.py --sampling.
"""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import torch
from other_checkouts import SIZES, nanogpt

from nanogpt_lib.bench import about, print_sampling, read_step, sampling_ways, step_parser
from nanogpt_lib.model import GPTConfig
from nanogpt_lib.support.cli import run_program
from nanogpt_lib.support.files import write_json


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


def main(argv: list[str] | None = None) -> None:
    """Generate with each in turn, and print the table."""
    parser = step_parser("compare_sampling.py", __doc__.split("\n")[0])
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--new-tokens", type=int, default=400, help="tokens per text")
    parser.add_argument("--rounds", type=int, default=3, help="the best of these counts")
    args, device, shape, rows = read_step(parser, argv, crop=False)
    record = about(args, device, shape, rows)
    torch.manual_seed(0)
    ways = their_ways(shape, device, args.nanogpt) | sampling_ways(shape, device)
    record["sampling"] = print_sampling(ways, device, args.new_tokens, args.rounds)
    if args.json:
        write_json(args.json, record)


if __name__ == "__main__":
    run_program("compare_sampling.py", main)
