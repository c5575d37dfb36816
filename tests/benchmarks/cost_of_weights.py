"""What rounding a model's weights costs: logits, perplexity, and whether the text stays the same.

    python tests/benchmarks/cost_of_weights.py recorded --data data/pydocs
    python tests/benchmarks/cost_of_weights.py runs/gpt2-124m --data data/fineweb [--json FILE]

Every product, the prompt's too, uses the rounded weights, though sample.py reads prompts with the
exact ones. Perplexity is measured on the first tokens of the dataset's validation split, the text
is greedy after a prompt from the same split.
"""

import argparse
import math
from pathlib import Path

import torch
import torch.nn as nn
from record import write_record

from nanogpt_lib.evaluation import validation_loss
from nanogpt_lib.load import load_model, recorded_model
from nanogpt_lib.model import GPT
from nanogpt_lib.sampling import generate
from nanogpt_lib.shards import TokenStream
from nanogpt_lib.support.cli import run_program
from nanogpt_lib.support.packed import fast_inference
from nanogpt_lib.support.weight_formats import LOSSY, rounded, works


def round_weights(model: GPT, name: str) -> None:
    """Replace the weight of every linear layer by what this format stores of it.

    The embedding that is tied to the head keeps its own copy, as in sample.py.
    """
    model.transformer.wte.weight = nn.Parameter(model.transformer.wte.weight.detach().clone())
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            new = rounded(layer.weight.detach(), name).contiguous()
            layer.weight = nn.Parameter(new, requires_grad=False)


def text_of(model: GPT, prompt: torch.Tensor, new: int, weights: str) -> list[int]:
    """Greedy tokens as sample.py would write them."""
    with fast_inference(model, torch.device("cpu"), torch.float32, 1, weights):
        return generate(model, prompt[None], new, temperature=0)[0, len(prompt) :].tolist()


def same_for(text: list[int], exact: list[int]) -> int:
    """The number of tokens before the first difference."""
    pairs = zip(text, exact, strict=True)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(exact))


def measure(load, data: Path, tokens: int, new: int) -> list[dict]:
    """One row for each format: largest and typical change of a logit, perplexity, same tokens."""
    exact, _ = load()
    stream, block = TokenStream(data, "val"), exact.config.block_size
    head = torch.from_numpy(stream.read(0, 8 * block).astype("int64")).view(8, block)
    prompts = head[:, : block // 4]
    options = dict(tokens=tokens, batch_size=16, device="cpu")
    with torch.inference_mode():
        logits = exact.eval()(head)[0]
        texts = [text_of(exact, prompt, new, "float32") for prompt in prompts]
        rows = [{"weights": "float32", "nats": validation_loss(exact, stream, **options)}]
        for name in filter(works, LOSSY):
            model, _ = load()
            round_weights(model.eval(), name)
            off = (model(head)[0] - logits).abs()
            same = [
                same_for(text_of(exact, prompt, new, name), text)
                for prompt, text in zip(prompts, texts, strict=True)
            ]
            nats = validation_loss(model, stream, **options)
            change = {"largest_change": off.max().item(), "mean_change": off.mean().item()}
            rows.append({"weights": name, "nats": nats, "same_tokens": same, "of": new, **change})
    for row in rows:
        row["perplexity"] = math.exp(row["nats"])
    return rows


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", help="as for sample.py; 'recorded': the chapters' model")
    parser.add_argument("--data", type=Path, default=Path("data/pydocs"), help="a dataset")
    parser.add_argument("--tokens", type=int, default=100_000, help="of the validation split")
    parser.add_argument("--new-tokens", type=int, default=100, help="greedy tokens per prompt")
    parser.add_argument("--json", type=Path, help="also keep the rows in this file")
    args = parser.parse_args()
    one = recorded_model if args.checkpoint == "recorded" else lambda: load_model(args.checkpoint)
    rows = measure(one, args.data, args.tokens, args.new_tokens)
    for row in rows:
        rise = row["perplexity"] / rows[0]["perplexity"] - 1
        print(f"{row['weights']:<8} perplexity {row['perplexity']:.5f} ({rise:+.4%})", end="")
        if "of" in row:
            print(f", logits off by {row['largest_change']:.4f} at most, ", end="")
            print(f"{row['mean_change']:.4f} on average; the same greedy tokens: ", end="")
            print(f"{row['same_tokens']} of {row['of']}", end="")
        print()
    if args.json:
        write_record(args.json, {"checkpoint": args.checkpoint, "rows": rows})


if __name__ == "__main__":
    run_program("cost_of_weights.py", main)
