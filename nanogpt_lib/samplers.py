"""Tokens per second when drawing text: ours, transformers' and nanoGPT's; for bench.py."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch

from nanogpt_lib.device import choose_dtype, synchronize
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.others import nanogpt
from nanogpt_lib.sampling import generate
from nanogpt_lib.support.packed import fast_inference


def theirs(shape: dict, device: torch.device, checkout: Path | None) -> dict[str, Callable]:
    """Their own generate() on models of this shape with random weights, top-k 50; by name."""
    from transformers import GPT2Config, GPT2LMHeadModel

    ways: dict[str, Callable] = {}
    if checkout:
        read = nanogpt(checkout)
        with contextlib.redirect_stdout(io.StringIO()):  # it announces its parameters
            nano = read["GPT"](read["GPTConfig"](**shape, vocab_size=50257)).to(device).eval()
        ways["nanoGPT"] = lambda idx, n: nano.generate(idx, n, top_k=50)
    sizes = {key: shape[key] for key in ("n_layer", "n_head", "n_embd")}
    hf = GPT2LMHeadModel(GPT2Config(**sizes, n_positions=shape["block_size"])).to(device).eval()
    options = dict(do_sample=True, top_k=50, pad_token_id=50256)

    def cached(idx, n):
        hf.generate(idx, max_new_tokens=n, min_new_tokens=n, **options)

    return {**ways, "transformers, cached": cached}


def ours(shape: dict, device: torch.device) -> dict[str, Callable]:
    """Our generate(): the plain model, and inside `fast_inference` as sample.py runs it."""
    model = GPT(GPTConfig(**shape)).to(device).eval()

    def way(context) -> Callable:
        def draw(idx, n):
            with context():
                generate(model, idx, n, top_k=50)

        return draw

    ways = {"ours, float32": way(contextlib.nullcontext)}
    for dtype in dict.fromkeys([torch.float32, choose_dtype(device)]):
        ways[f"ours, fast {str(dtype).removeprefix('torch.')}"] = way(
            lambda dtype=dtype: fast_inference(model, device, dtype, rows=1)
        )
    return ways


def print_sampling(
    shape: dict, device: torch.device, new: int, rounds: int, checkout: Path | None
) -> list:
    """Tokens per second at batch 1 after a prompt of 8, the best of some rounds taken in turns."""
    torch.manual_seed(0)
    ways = theirs(shape, device, checkout) | ours(shape, device)
    idx = torch.randint(50257, (1, 8), device=device)
    best = dict.fromkeys(ways, 0.0)
    for count in (4, *[new] * rounds):  # the first one warms up
        for name, way in ways.items():
            start = perf_counter()
            way(idx, count)
            synchronize(device)
            best[name] = max(best[name], count / (perf_counter() - start)) if count == new else 0.0
    first = next(iter(best.values()))
    print(f"{new} tokens after a prompt of 8, top-k 50, random weights, best of {rounds}")
    for name, rate in best.items():
        print(f"{name:<24}{rate:>10.1f} tokens/s{rate / first:>8.2f}")
    return [{"way": name, "tokens_per_sec": round(rate, 1)} for name, rate in best.items()]
