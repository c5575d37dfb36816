"""HellaSwag by EleutherAI's lm-eval and by us: the same model, the same items, item by item.

    python tests/benchmarks/compare_lm_eval.py CHECKPOINT ITEMS.jsonl [--limit N] [--batch-size 16]

CHECKPOINT is a run, or gpt2 … gpt2-xl; it goes to the harness through `save_huggingface`. Both get
the items' `ctx` unchanged. The harness's own model class scores the pairs (context, " " +
ending) in float32; its task takes the largest sum for `acc`, and the largest sum per character for
`acc_norm`, which is ours per byte wherever a text is ASCII. Exit status 1 if a sum is 0.01 nats
off, or a winner differs whose two best sums are over 0.001 nats apart. What bfloat16 changes is
printed. Needs `pip install -e ".[interop]"`.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import torch
from bench_hellaswag import winners_changed

from nanogpt_lib.hellaswag import choose_endings, describe_items, read_items
from nanogpt_lib.huggingface import save_huggingface
from nanogpt_lib.load import load_model
from nanogpt_lib.scoring import item_losses, require_gpt2_tokens
from nanogpt_lib.support.cli import run_program
from nanogpt_lib.support.memory import keep_freed_memory
from nanogpt_lib.support.processor import cpu_multiplies_bfloat16


def harness_losses(folder: str, raw: list[dict], batch_size: int) -> torch.Tensor:
    """What lm-eval computes for the four endings of every item, in nats, (items, 4)."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=batch_size)
    pairs = [(item["ctx"], f" {ending}") for item in raw for ending in item["endings"]]
    asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    return torch.tensor([-sum_ for sum_, _ in lm.loglikelihood(asked)]).view(-1, 4)


def main() -> int:
    """Score both ways and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("items", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"  # everything is here already
    keep_freed_memory()
    model, tokenizer = load_model(args.checkpoint)
    require_gpt2_tokens(tokenizer, args.checkpoint)
    items = read_items(args.items, tokenizer, args.limit)
    lines = [line for line in args.items.read_text("utf-8-sig").split("\n") if line.strip()]
    raw = [json.loads(line) for line in lines[: len(items)]]
    with tempfile.TemporaryDirectory() as folder:
        save_huggingface(folder, vars(model.config), model.state_dict(), tokenizer)
        theirs = harness_losses(folder, raw, args.batch_size)
    ours = item_losses(model, items, progress=True)
    apart = (ours - theirs).abs()
    print(f"{describe_items(items)}: sums {apart.mean():.1e} nats apart, at most {apart.max():.1e}")

    labels = torch.tensor([item.label for item in items])
    sizes = torch.tensor([item.ending_bytes for item in items])
    characters = torch.tensor([[float(len(e)) for e in item["endings"]] for item in raw])
    ascii_only = (sizes == characters).all(dim=1)
    wrong = int(not apart.max() < 0.01)  # also if it is no number
    by_sum, _, by_byte = choose_endings(ours, items)
    for name, mine, other, length in (
        ("acc", by_sum, theirs, torch.ones(len(items))),
        ("acc_norm", by_byte, theirs / characters, characters.mean(dim=1)),
    ):
        two = other.sort(dim=1).values
        tied = (two[:, 1] - two[:, 0]) * length < 1e-3
        differ = mine != other.argmin(dim=1)
        counted = differ & ~tied if name == "acc" else differ & ~tied & ascii_only
        wrong += int(counted.sum())
        winners = (other.argmin(dim=1), mine)
        scores = [(chosen == labels).float().mean().item() for chosen in winners]
        print(
            f"{name:8} lm-eval {scores[0]:.4f}, ours {scores[1]:.4f}; winners that differ: "
            f"{int(differ.sum())} ({int(counted.sum())} of them neither tied nor non-ASCII)"
        )
    if cpu_multiplies_bfloat16():
        rough = item_losses(model, items, dtype=torch.bfloat16, progress=True)
        flips = winners_changed(ours, rough, items, gap=0.02)
        print(
            f"bfloat16: {(rough - ours).abs().mean():.4f} nats from float32, at most "
            f"{(rough - ours).abs().max():.4f}; winners by sum, token and byte changed where the "
            f"two best scores are over 0.02 apart: {flips}"
        )
    return int(wrong > 0)


if __name__ == "__main__":
    run_program("compare_lm_eval.py", main)
