"""Time HellaSwag scoring against the lecture's script, in one run on the same items.

    python tests/benchmarks/bench_hellaswag.py ITEMS.jsonl [BUILD_NANOGPT] [--json FILE]

GPT-2 124M's shape with random weights. BUILD_NANOGPT is a checkout of the lecture's repository: its
own `evaluate` runs, item by item, on a transformers model with the same weights. Every slice has
items of similar length, like a batch of the full run. Rounds are interleaved, so that a busy
machine slows all candidates alike. Exit status 1 if the choice of an ending differs unexpectedly.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import re
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import tiktoken
import torch
from record import write_record

from nanogpt_lib.hellaswag import read_items
from nanogpt_lib.huggingface import save_huggingface
from nanogpt_lib.model import GPT, GPTConfig
from nanogpt_lib.scoring import item_losses
from nanogpt_lib.support.cli import run_program
from nanogpt_lib.support.processor import cpu_multiplies_bfloat16
from nanogpt_lib.tokenizer import GPT2Tokenizer


def lecture_script(checkout: Path, model: GPT):
    """The lecture's hellaswag.py as a module, given this model and our tokenizer (same ids)."""
    from transformers import GPT2LMHeadModel

    with tempfile.TemporaryDirectory() as folder:
        save_huggingface(folder, vars(model.config), model.state_dict())
        theirs = GPT2LMHeadModel.from_pretrained(folder).eval()
    tiktoken.get_encoding = lambda name: GPT2Tokenizer()
    spec = importlib.util.spec_from_file_location("lecture_hellaswag", checkout / "hellaswag.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.GPT2LMHeadModel = SimpleNamespace(from_pretrained=lambda name: theirs)
    return module


def lecture_losses(module, examples: list[dict]) -> torch.Tensor:
    """Mean loss per token of each ending, (items, 4), as the lecture's script prints it."""
    rows = []
    for example in examples:
        module.iterate_examples = lambda split, example=example: [example]
        with contextlib.redirect_stdout(io.StringIO()) as said:
            module.evaluate("gpt2", "cpu")
        rows.append(
            [float(x) for x in re.findall(r"^\d \(loss: ([\d.]+)\)", said.getvalue(), re.M)]
        )
    return torch.tensor(rows)


def winners_changed(exact: torch.Tensor, other: torch.Tensor, items: list, gap: float) -> list[int]:
    """By sum, token and byte: winners that change though the two best are over `gap` apart."""
    lengths = torch.tensor([[len(ending) for ending in item.endings] for item in items])
    sizes, found = torch.tensor([item.ending_bytes for item in items]), []
    for size in (torch.ones_like(lengths), lengths, sizes):
        two = (exact / size).sort(dim=1).values
        changed = (exact / size).argmin(dim=1) != (other / size).argmin(dim=1)
        found.append(int((changed & (two[:, 1] - two[:, 0] > gap)).sum()))
    return found


def main() -> int:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("items", type=Path)
    parser.add_argument("checkout", type=Path, nargs="?")
    parser.add_argument("--slices", type=int, default=3)
    parser.add_argument("--items", dest="count", type=int, default=192, help="items per slice")
    parser.add_argument("--json", type=Path, help="also keep the figures in this file")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = GPT(GPTConfig()).eval()
    items = read_items(args.items, GPT2Tokenizer())
    raw = [json.loads(line) for line in args.items.read_text("utf-8").strip().split("\n")]
    length = [len(item.context) + sum(map(len, item.endings)) for item in items]
    order = sorted(range(len(items)), key=length.__getitem__)
    lecture = lecture_script(args.checkout, model) if args.checkout else None
    dtypes = [torch.float32] + [torch.bfloat16] * cpu_multiplies_bfloat16()
    seconds = dict.fromkeys(["lecture", *dtypes], 0.0)
    scored = dict.fromkeys(["lecture", *dtypes], 0)
    wrong = 0
    for part in range(args.slices):
        middle = (2 * part + 1) * len(items) // (2 * args.slices)
        chosen = order[middle - args.count // 2 :][: args.count]
        few, losses = [items[i] for i in chosen], {}
        for dtype in dtypes:
            item_losses(model, few[:2], dtype=dtype)  # warm-up
            start = time.perf_counter()
            losses[dtype] = item_losses(model, few, dtype=dtype)
            seconds[dtype] += time.perf_counter() - start
            scored[dtype] += len(few)
        exact = losses[torch.float32]
        for dtype in dtypes[1:]:
            error = (losses[dtype] - exact).abs()
            flips = winners_changed(exact, losses[dtype], few, gap=0.02)
            wrong += sum(flips)
            print(
                f"slice {part}: {dtype} differs by {error.mean():.4f} nats, at most "
                f"{error.max():.4f}; winners changed where scores are 0.02 apart: {flips}"
            )
        if lecture:
            every = range(0, len(few), max(1, len(few) // 10))
            start = time.perf_counter()
            theirs = lecture_losses(lecture, [raw[chosen[i]] for i in every])
            seconds["lecture"] += time.perf_counter() - start
            scored["lecture"] += len(every)
            torch.set_float32_matmul_precision("highest")  # the script sets "high"
            sizes = torch.tensor([[len(e) for e in few[i].endings] for i in every])
            difference = (exact[list(every)] / sizes - theirs).abs().max().item()
            wrong += difference > 2e-4
            print(f"slice {part}: per token, item by item: lecture and ours {difference:.5f} apart")
    rates = {str(n).removeprefix("torch."): scored[n] / seconds[n] for n in scored if scored[n]}
    for name, rate in rates.items():
        ratio = rate / rates["lecture"] if lecture else float("nan")
        print(f"{name:15} {rate:6.2f} items/s   {ratio:5.1f} × the lecture's loop")
    if args.json:
        counts = {str(name).removeprefix("torch."): scored[name] for name in scored}
        write_record(args.json, {"items_per_sec": rates, "items": counts, "wrong": wrong})
    return int(wrong > 0)


if __name__ == "__main__":
    run_program("bench_hellaswag.py", main)
